"""The model families that both programs know: chats, limits of rows, image grids, token counts.

Needs nothing but the standard library.

table, reading, fixed_points → family → grids
"""

from __future__ import annotations

from vlmdata.families.family import Family, HubModel, row_problem
from vlmdata.families.fixed_points import fixed_point_size
from vlmdata.families.grids import ImageGrid
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
