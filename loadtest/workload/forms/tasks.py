"""Tasks for tools and for JSON by a schema, each with the one right call or value, drawn from a seed."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from loadtest.workload.forms.tools import Tool, made_tool
from loadtest.workload.prompts import Step

Arguments = dict[str, Any]

_CITIES = ("Oslo", "Turin", "Ghent", "Porto", "Lyon", "Graz", "Bergen", "Leeds")
_NAMES = ("Ada Berg", "Ben Castro", "Chen Li", "Dora Novak", "Emil Hansen", "Fatima Khan", "Grace Obi", "Hugo Marin")
_GOODS = ("bolts", "lamps", "cables", "chairs", "valves", "filters", "switches", "brackets")
_ROOMS = ("kitchen", "office", "bedroom", "hall", "workshop")
_CURRENCIES = ("EUR", "USD", "GBP", "JPY", "CHF")
_CLASSES = ("first", "second")
_PLACES = ("park", "station", "school")


def _text(**more: Any) -> Arguments:
    return {"type": "string", **more}


def _whole(least: int, most: int) -> Arguments:
    return {"type": "integer", "minimum": least, "maximum": most}


def _parameters(**properties: Arguments) -> Arguments:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class ToolTask:
    """What a tool is, how arguments for it are drawn, and how a user asks for them."""

    tool: Tool
    draw: Callable[[Random], Arguments]
    words: str


def _day(draw: Random) -> str:
    return f"2027-{draw.randint(1, 12):02}-{draw.randint(1, 28):02}"


TASKS: Mapping[str, ToolTask] = {
    "book_train": ToolTask(
        made_tool(
            "book_train",
            "Book seats on a train.",
            _parameters(
                origin=_text(), destination=_text(), date=_text(), seats=_whole(1, 9),
                travel_class=_text(enum=list(_CLASSES)),
            ),
        ),
        lambda draw: dict(
            zip(("origin", "destination"), draw.sample(_CITIES, 2), strict=True),
            date=_day(draw), seats=draw.randint(1, 9), travel_class=draw.choice(_CLASSES),
        ),
        "Book {seats} seats in {travel_class} class from {origin} to {destination} on {date}.",
    ),
    "convert_money": ToolTask(
        made_tool(
            "convert_money",
            "Convert an amount of money.",
            _parameters(
                amount=_whole(1, 10**6), source=_text(enum=list(_CURRENCIES)), target=_text(enum=list(_CURRENCIES))
            ),
        ),
        lambda draw: dict(
            zip(("source", "target"), draw.sample(_CURRENCIES, 2), strict=True), amount=draw.randint(10, 90_000)
        ),
        "How much are {amount} {source} in {target}?",
    ),
    "set_temperature": ToolTask(
        made_tool(
            "set_temperature",
            "Set the temperature of a room, in degrees Celsius.",
            _parameters(room=_text(enum=list(_ROOMS)), degrees=_whole(5, 30)),
        ),
        lambda draw: {"room": draw.choice(_ROOMS), "degrees": draw.randint(5, 30)},
        "Set the {room} to {degrees} degrees.",
    ),
    "order_goods": ToolTask(
        made_tool(
            "order_goods",
            "Order goods for a customer.",
            _parameters(
                customer=_text(), goods=_text(enum=list(_GOODS)), quantity=_whole(1, 1000), express={"type": "boolean"}
            ),
        ),
        lambda draw: {
            "customer": draw.choice(_NAMES), "goods": draw.choice(_GOODS), "quantity": draw.randint(2, 900),
            "express": draw.random() < 0.5,
        },
        "Order {quantity} {goods} for {customer}; express delivery: {express}.",
    ),
    "plan_meeting": ToolTask(
        made_tool(
            "plan_meeting",
            "Put a meeting of two people into the calendar.",
            _parameters(
                people={"type": "array", "items": _text(), "minItems": 2, "maxItems": 2},
                date=_text(), minutes=_whole(5, 480),
            ),
        ),
        lambda draw: {"people": draw.sample(_NAMES, 2), "date": _day(draw), "minutes": 5 * draw.randint(3, 24)},
        "Plan {minutes} minutes on {date} for {people[0]} and {people[1]}.",
    ),
    "find_flat": ToolTask(
        made_tool(
            "find_flat",
            "Find flats in a city.",
            _parameters(city=_text(), rooms=_whole(1, 6), most_rent=_whole(100, 5000), near=_text(enum=list(_PLACES))),
        ),
        lambda draw: {
            "city": draw.choice(_CITIES), "rooms": draw.randint(1, 6), "most_rent": 50 * draw.randint(8, 60),
            "near": draw.choice(_PLACES),
        },
        "Find a flat with {rooms} rooms in {city} near a {near} for at most {most_rent} a month.",
    ),
}  # fmt: skip


def asked_in_words(task: ToolTask, arguments: Arguments) -> str:
    """The user's message."""
    said = {key: {True: "yes", False: "no"}[one] if isinstance(one, bool) else one for key, one in arguments.items()}
    return task.words.format(**said)


# Calls one after another -------------------------------------------------------------------------------------------

_TWO = _parameters(a={"type": "integer"}, b={"type": "integer"})
SUMS: Mapping[str, tuple[Tool, str, Callable[[int, int], int]]] = {
    "add": (made_tool("add", "a + b", _TWO), "Add {b}.", operator.add),
    "subtract": (made_tool("subtract", "a - b", _TWO), "Subtract {b}.", operator.sub),
    "multiply": (made_tool("multiply", "a * b", _TWO), "Multiply the result by {b}.", operator.mul),
}


def drawn_chain(draw: Random, calls: int) -> tuple[str, list[Step], int]:
    """A sum in words, the calls that it takes, each with the result of the one before, and its result."""
    result = draw.randint(2, 99)
    words, steps = [f"Start with {result}."], []
    for _ in range(calls):
        name = draw.choice(sorted(SUMS))
        b = draw.randint(2, 9 if name == "multiply" else 99)
        arguments, result = {"a": result, "b": b}, SUMS[name][2](result, b)
        words.append(SUMS[name][1].format(b=b))
        steps.append(Step(name=name, arguments=arguments, result=str(result)))
    return " ".join(words), steps, result


# JSON by a schema ----------------------------------------------------------------------------------------------------


def order_schema(items: int) -> Arguments:
    """The schema of an order of so many items."""
    line = _parameters(goods=_text(enum=list(_GOODS)), quantity=_whole(1, 1000), price_cents=_whole(1, 10**6))
    lines = {"type": "array", "items": line, "minItems": items, "maxItems": items}
    return _parameters(customer=_text(), city=_text(), express={"type": "boolean"}, items=lines)


def drawn_order(draw: Random, items: int) -> tuple[str, Arguments]:
    """An order in words, and as the value that its schema asks for."""
    lines = [
        {"goods": goods, "quantity": draw.randint(1, 900), "price_cents": draw.randint(20, 90_000)}
        for goods in draw.sample(_GOODS, items)
    ]
    express, customer, city = draw.random() < 0.5, draw.choice(_NAMES), draw.choice(_CITIES)
    listed = "; ".join(f"{one['quantity']} {one['goods']} at {one['price_cents']} cents each" for one in lines)
    how = "by express" if express else "by ordinary mail"
    return f"{customer} from {city} orders {listed}. It goes {how}.", {
        "customer": customer, "city": city, "express": express, "items": lines,
    }  # fmt: skip


def numbers_schema(n: int) -> Arguments:
    """The schema of exactly so many whole numbers: no JSON by it has fewer tokens."""
    return _parameters(numbers={"type": "array", "items": _whole(0, 999), "minItems": n, "maxItems": n})


MOST_ITEMS = len(_GOODS)
