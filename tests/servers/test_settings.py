"""The table of engine settings: one row each, complete, without overlap, and the same value for both engines."""

from dataclasses import fields

import pytest

from loadtest.errors import UsageError
from loadtest.servers.settings import SETTINGS, EngineSettings, check_settings, setting_values, told_keys
from loadtest.workload.contract import Contract
from tests.support.engine_settings import EXAMPLES


def test_every_setting_is_a_key_of_the_contract_and_is_tried():
    keys = [row.key for row in SETTINGS]
    assert keys == [one.name for one in fields(EngineSettings)] == list(EXAMPLES)
    assert set(keys) <= {one.name for one in fields(Contract)}


@pytest.mark.parametrize("engine", ["vllm", "sglang", "vllm-sim", "sglang-sim"])
def test_a_flag_tells_one_setting(engine):
    columns = [column for row in SETTINGS if (column := row.column(engine)) is not None]
    names = [name for column in columns for name in column.names]
    assert len(set(names)) == len(names) > 3
    assert len(set(told_keys(engine))) == len(told_keys(engine))


def test_another_engine_is_told_nothing():
    assert {row.column("other") for row in SETTINGS} == {None}
    assert told_keys("other") == ()


@pytest.mark.parametrize("row", SETTINGS, ids=lambda row: row.key)
@pytest.mark.parametrize("engine", ["vllm", "sglang", "vllm-sim"])
def test_words_are_read_back(engine, row):
    column = row.column(engine)
    for value in (EXAMPLES[row.key][0], getattr(EngineSettings(), row.key)):
        words = column.words(value, "qwq-32b") if column is not None and row.compared else []
        if words:
            name, word = words[0], words[-1]
            assert row.agrees(value, column.read_word(name, word))


@pytest.mark.parametrize("key", EXAMPLES)
def test_a_value_that_breaks_its_rule_is_named(key):
    good, bad = EXAMPLES[key]
    check_settings(EngineSettings(**{key: good}))
    assert setting_values(EngineSettings(**{key: good}))[key] == good
    if bad is None:
        return
    with pytest.raises(UsageError, match=rf"^{key}: expected .*, got "):
        check_settings(EngineSettings(**{key: bad}))


def test_no_flag_is_given_for_what_the_engine_chooses():
    settings = EngineSettings(reasoning_parser="none")
    for row in SETTINGS:
        if row.key not in ("seed", "prefix_caching"):
            assert row.vllm.words(getattr(settings, row.key), "m") == row.sglang.words(getattr(settings, row.key), "m") == []
