"""T-45, settings: each wrong value is refused by name, wherever it stands, before anything is opened."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.command import Run, refusal
from tidelog_broker.config import FLAGS, NUMBERS, Setting, WrongSetting, load_config

every_number = pytest.mark.parametrize("setting", NUMBERS, ids=lambda setting: setting.name)


def values(setting: Setting) -> list[str]:
    return ["0", "-1", "", "x", "1.5", "1e3", str(setting.minimum - 1), str(setting.maximum + 1), "9" * 5_000]


@every_number
def test_a_wrong_number_is_refused_by_name(setting: Setting, tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    file = tmp_path / "settings.toml"
    for value in values(setting):
        with pytest.raises(WrongSetting, match=f"^{setting.name}: "):
            load_config(data, (), {setting.name: value}, None, {})
        with pytest.raises(WrongSetting, match=f"^{setting.name}: "):
            load_config(data, (), {}, None, {f"TIDELOG_{setting.name.upper()}": value})
        file.write_text(f"{setting.name} = {value!r}\n")
        with pytest.raises(WrongSetting, match=f"^{setting.name}: "):
            load_config(data, (), {}, str(file), {})
    for value in ("0", "true", "1.5", "[]", str(setting.maximum + 1)):
        file.write_text(f"{setting.name} = {value}\n")
        with pytest.raises(WrongSetting, match=f"^{setting.name}: "):
            load_config(data, (), {}, str(file), {})


@every_number
def test_zero_is_refused_at_the_command_line_with_exit_64(run: Run, setting: Setting, folder: Path) -> None:
    flag = "--" + setting.name.replace("_", "-")
    why = refusal(run("serve", "--data", str(folder / "d"), "--bind", f"ipc://{folder}/b", flag, "0"), 64)
    assert setting.name in why
    assert not (folder / "d").exists()
    assert flag in refusal(run("serve", "--data", str(folder / "d"), flag), 64)


@every_number
def test_the_bounds_of_a_number_are_taken(setting: Setting) -> None:
    for value in (setting.minimum, setting.maximum):
        given = {"append_bytes_max": "64", setting.name: str(value)}
        assert load_config("d", (), given, None, {}).numbers[setting.name] == value


def test_a_message_must_have_room_for_the_largest_append() -> None:
    with pytest.raises(WrongSetting, match=r"^message_bytes_max: .*append_bytes_max"):
        load_config("d", (), {"message_bytes_max": str((9 << 20) - 1)}, None, {})
    load_config("d", (), {"message_bytes_max": str(9 << 20), "append_bytes_max": str(8 << 20)}, None, {})


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", ["", "2", "on", "maybe"])
def test_a_switch_is_true_or_false(name: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(WrongSetting, match=f"^{name}: "):
        load_config("d", (), {}, None, {f"TIDELOG_{name.upper()}": value})
    file = tmp_path / "settings.toml"
    file.write_text(f"{name} = 0\n")
    with pytest.raises(WrongSetting, match=f"^{name}: "):
        load_config("d", (), {}, str(file), {})


def test_a_flag_goes_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('data = "from file"\nheartbeat_ms = 11\nidle_mark_ms = 11\nmark_groups = 11\n')
    environment = {"TIDELOG_IDLE_MARK_MS": "12", "TIDELOG_MARK_GROUPS": "12", "TIDELOG_CONFIG": str(file)}
    config = load_config(None, (), {"mark_groups": "13"}, None, environment)
    assert (config.numbers["heartbeat_ms"], config.numbers["idle_mark_ms"], config.numbers["mark_groups"]) == (
        11,
        12,
        13,
    )
    assert config.data == Path("from file")


@pytest.mark.parametrize(
    ("text", "name"),
    [("segment_byte = 5", "segment_byte"), ("data = 5", "data"), ("bind = 5", "bind"), ("bind = [5]", "bind"),
     ("= 5", "config"), ("a = \xff", "config")],
)  # fmt: skip
def test_a_wrong_file_is_refused_by_what_is_wrong_in_it(run: Run, text: str, name: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_bytes(text.encode("latin-1"))
    data = () if "data" in text else ("--data", str(tmp_path / "d"))
    assert name in refusal(run("serve", *data, "--config", str(file), "--check"), 64)


def test_a_missing_file_and_a_missing_directory_are_refused_by_name(run: Run, tmp_path: Path) -> None:
    assert "config: " in refusal(run("serve", "--data", "d", "--config", str(tmp_path / "none"), "--check"), 64)
    assert "data: " in refusal(run("serve"), 64)
    assert "data: " in refusal(run("serve", "--data", ""), 64)


@pytest.mark.parametrize(
    "address", ["", "x", "ipc://", "ipc://relative", "tcp://127.0.0.1", "tcp://127.0.0.1:x", "udp://h:1"]
)
def test_a_wrong_address_is_refused_by_name(run: Run, address: str, tmp_path: Path) -> None:
    assert "bind: " in refusal(run("serve", "--data", str(tmp_path / "d"), "--bind", address), 64)
    assert not (tmp_path / "d").exists()


def test_check_accepts_good_settings_and_opens_nothing(run: Run, folder: Path) -> None:
    done = run("serve", "--data", str(folder / "d"), "--bind", f"ipc://{folder}/b", "--heartbeat-ms", "100", "--check")
    assert (done.returncode, done.stdout) == (0, "the settings are good\n")
    assert list(folder.iterdir()) == []
