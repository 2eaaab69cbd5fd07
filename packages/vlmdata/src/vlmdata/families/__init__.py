"""The model families that both programs know: chats, limits of rows, image grids and token counts. Only the standard library.

table, reading → family → grids
"""

from __future__ import annotations

from vlmdata.families.family import Family, HubModel, row_problem
from vlmdata.families.grids import ImageGrid, fixed_point_size
from vlmdata.families.reading import read_grid
from vlmdata.families.table import FAMILIES, find_family, find_hub_hint, get_family

__all__ = [
    "FAMILIES",
    "Family",
    "HubModel",
    "ImageGrid",
    "find_family",
    "find_hub_hint",
    "fixed_point_size",
    "get_family",
    "read_grid",
    "row_problem",
]
