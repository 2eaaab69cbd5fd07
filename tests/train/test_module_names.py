"""What modules say of themselves in `__all__`, read from their text: Unsloth's backend cannot be imported here."""

from __future__ import annotations

import ast
from pathlib import Path

import vlmtrain

ROOT = Path(vlmtrain.__file__).parent
TREES = {
    ".".join(("vlmtrain", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): ast.parse(
        path.read_text(encoding="utf-8")
    )
    for path in sorted(ROOT.rglob("*.py"))
}


def named_public(tree: ast.Module) -> list[str] | None:
    assigned = [each for each in tree.body if isinstance(each, ast.Assign)]
    found = [each.value for each in assigned if [ast.unparse(target) for target in each.targets] == ["__all__"]]
    return ast.literal_eval(found[0]) if found else None


def test_modules_take_from_each_other_what_is_public() -> None:
    public = {name: named_public(tree) for name, tree in TREES.items()}
    private = set()
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in public:
                known = {*(public[node.module] or ()), *(each.rpartition(".")[2] for each in public)}
                private |= {f"{name}: {node.module}.{each.name}" for each in node.names if each.name not in known}
    assert private == set()


def test_public_names_are_defined() -> None:
    missing = set()
    for name, tree in TREES.items():
        defined = {each.id for each in ast.walk(tree) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
        defined |= {each.name for each in tree.body if isinstance(each, ast.FunctionDef | ast.ClassDef)}
        defined |= {each.name for node in tree.body if isinstance(node, ast.ImportFrom) for each in node.names}
        if name != "vlmtrain":
            missing |= {f"{name}.{each}" for each in named_public(tree) or () if each not in defined}
    assert missing == set()
    # those of the package are imported when they are asked for
    assert all(getattr(vlmtrain, each) is not None for each in vlmtrain.__all__)
