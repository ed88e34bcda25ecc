"""Templates of prompts: `{column}` stands for the value of a row's column, a list for its entries line by line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stillhouse.errors import DataError, did_you_mean
from stillhouse.recipe_data import PLACEHOLDER


def fill(template: str, columns: Mapping[str, Any], setting: str, place: str) -> str:
    """The template with the values of the columns that it names; whatever else it holds is left as it stands.

    Args:
        template: such as `"{contexts}\\n\\nQuestion: {question}"`.
        columns: of the row, by name.
        setting: which holds the template, for messages.
        place: which row it is, for messages.

    Raises:
        DataError: a placeholder without a column, or whose column holds nothing or no text.

    >>> fill("{contexts}\\nWhy {question}?", {"contexts": ["A.", "B."], "question": "so"}, "template", "row 1")
    'A.\\nB.\\nWhy so?'
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in columns:
            raise DataError(
                f"{setting} uses {match[0]}, and {place} has no such column. {did_you_mean(match[1], columns)}"
            )
        found = columns[match[1]]
        if found is None or isinstance(found, Mapping):
            what = "is empty" if found is None else f"holds the columns {', '.join(map(str, found))}"
            raise DataError(
                f"{setting} uses {match[0]}, which {what} in {place}, and a prompt is made of text. Mend or remove the "
                "row, or name another column."
            )
        return "\n".join(map(str, found)) if isinstance(found, list | tuple) else str(found)

    return PLACEHOLDER.sub(value, template)
