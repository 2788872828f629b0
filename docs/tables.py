"""python docs/tables.py: write the tables of settings in these pages anew.

A table stands below ``<!-- settings of GROUP -->``. What is in it is said in the settings classes
and in the files of conf/: change it there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pinnkfac.inspection import catalog
from pinnkfac.inspection.catalog import Setting

PAGES = sorted(Path(__file__).resolve().parent.glob("*.md"))


def table(group: str) -> str:
    """Every setting of a group's options: its default, the options that have it, its meaning.

    A field of a class to which several keys lead stands where the key is the shortest.
    """
    settings = {
        folder.name: {option.name: option.settings() for option in catalog.options(folder)}
        for folder in catalog.groups().values()
    }
    shortest: dict[tuple[str, str], str] = {}
    for setting in (s for options in settings.values() for one in options.values() for s in one):
        keys = shortest.get(field(setting), setting.key), setting.key
        shortest[field(setting)] = min(keys, key=lambda key: key.count("."))
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for option, of_option in settings[group].items():
        for setting in of_option:
            if setting.owner and setting.key == shortest[field(setting)]:
                meaning = setting.remark.replace("|", r"\|")
                rows.setdefault((setting.key, meaning), {})[option] = f"`{setting.value}`"
    every = list(settings[group])
    lines = [("setting", "default", "of", "is"), ("---", "---", "---", "---")]
    for (key, meaning), values in rows.items():
        of = "all" if list(values) == every else named(values)
        lines.append((f"`{key}`", default(values), of, meaning))
    columns = (0, 1, 2, 3) if len(every) > 1 else (0, 1, 3)
    return "".join(f"| {' | '.join(line[c] for c in columns)} |\n" for line in lines)


def field(setting: Setting) -> tuple[str, str]:
    """The class and the field behind a setting."""
    return setting.owner, setting.key.rpartition(".")[2]


def default(values: dict[str, str]) -> str:
    """The value of most options, and behind it those of the others."""
    first, *others = (value for value, _ in Counter(values.values()).most_common())
    rest = (f"{v} of {named(o for o in values if values[o] == v)}" for v in others)
    return "; ".join((first, *rest))


def named(options: Iterable[str]) -> str:
    return ", ".join(f"`{option}`" for option in options)


def filled(page: str) -> str:
    """A page with its tables as they are to be."""
    place = r"^(<!-- settings of (\w+) -->\n\n)(?:\|.*\n)*"
    return re.sub(place, lambda marker: marker[1] + table(marker[2]), page, flags=re.M)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
