"use strict";
// Sorting a table by a column, showing one cell in all tables, copying a command. The page reads without any of them.
document.querySelectorAll("table.sortable").forEach(function (table) {
  table.querySelectorAll("thead th").forEach(function (th, column) {
    var button = document.createElement("button");
    button.type = "button";
    button.textContent = th.textContent;
    th.textContent = "";
    th.appendChild(button);
    button.addEventListener("click", function () {
      var up = th.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("thead th").forEach(function (other) { other.removeAttribute("aria-sort"); });
      th.setAttribute("aria-sort", up ? "ascending" : "descending");
      var key = function (row) {
        var text = row.cells[column].textContent.trim();
        var value = parseFloat(text.replace(/,/g, ""));
        return isNaN(value) ? text : value;
      };
      var rows = Array.from(table.tBodies[0].rows);
      rows.sort(function (a, b) {
        var x = key(a), y = key(b);
        var order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
        return up ? order : -order;
      });
      rows.forEach(function (row) { table.tBodies[0].appendChild(row); });
    });
  });
});
document.querySelectorAll("div.command").forEach(function (block) {
  var button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.addEventListener("click", function () {
    var range = document.createRange();
    range.selectNodeContents(block.querySelector("code"));
    var selection = window.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    var done = document.execCommand("copy");
    button.textContent = done ? "Copied" : "Selected";
  });
  block.appendChild(button);
});
var chooser = document.getElementById("chooser");
if (chooser) {
  chooser.hidden = false;
  chooser.querySelector("select").addEventListener("change", function (event) {
    var chosen = event.target.value;
    document.querySelectorAll("table").forEach(function (table) {
      var first = table.tHead && table.tHead.rows[0].cells[0];
      if (!first || first.textContent !== "cell") { return; }
      Array.from(table.tBodies[0].rows).forEach(function (row) {
        row.hidden = chosen !== "" && row.cells[0].textContent !== chosen;
      });
    });
  });
}
