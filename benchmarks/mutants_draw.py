"""Lists the mutants: every place that cosmic-ray can change, with the lines of its statement."""

import ast
import hashlib
import itertools
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One change: the `occurrence`-th place that the operator finds in the file; `lines` are those of its statement."""

    file: str
    operator: str
    occurrence: int
    line: int
    lines: range
    key: str


def candidates(file: str, text: str, seed: int) -> Iterator[Mutant]:
    """One mutant for each place of a file that an operator can change, except in annotations."""
    import cosmic_ray.plugins
    from cosmic_ray.ast import ast_nodes, get_ast

    operators = {name: cosmic_ray.plugins.get_operator(name) for name in sorted(cosmic_ray.plugins.operator_names())}
    operators = {name: operator() for name, operator in operators.items() if not operator.arguments()}
    tree, rows = ast.parse(text), text.splitlines()
    hints = list(_annotations(tree))
    found, same = Counter(), Counter()
    places: dict[tuple, Mutant] = {}
    for node in ast_nodes(get_ast(text)):
        for name, operator in operators.items():
            for index, (start, end) in enumerate(operator.mutation_positions(node)):
                occurrence, found[name] = found[name], found[name] + 1
                if any(low <= start and end <= high for low, high in hints):
                    continue
                label = f"{seed} {file} {name} {index} {start[1]} {rows[start[0] - 1].strip()}"
                same[label] += 1
                key = hashlib.sha256(f"{label} {same[label]}".encode()).hexdigest()[:16]
                mutant = Mutant(file, name, occurrence, start[0], _statement(tree, start[0]), key)
                if (start, end) not in places or key < places[start, end].key:
                    places[start, end] = mutant
    yield from places.values()


def _annotations(tree: ast.AST) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    for node in ast.walk(tree):
        for hint in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(hint, ast.AST):
                yield (hint.lineno, hint.col_offset), (hint.end_lineno, hint.end_col_offset)


def _statement(tree: ast.AST, line: int) -> range:
    """Lines of the smallest statement around a line (for a function's header: its body); empty outside functions."""
    around = [n for n in ast.walk(tree) if isinstance(n, ast.stmt) and n.lineno <= line <= n.end_lineno]
    if not any(isinstance(n, ast.FunctionDef) for n in around):
        return range(0)
    node = min(around, key=lambda n: n.end_lineno - n.lineno)
    if isinstance(node, ast.FunctionDef):
        return range(node.body[0].lineno, node.end_lineno + 1)
    inside = getattr(node, "body", None)  # for `if` and `for` only the header counts
    return range(node.lineno, max(line, inside[0].lineno - 1) + 1 if inside else node.end_lineno + 1)


def changed(mutant: Mutant, text: str) -> str | None:
    """The whole text of the mutant's file; None where it is no valid Python, as after a change of `*args`."""
    import cosmic_ray.plugins
    from cosmic_ray.mutating import mutate_code

    code = mutate_code(text, cosmic_ray.plugins.get_operator(mutant.operator)(), mutant.occurrence)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            compile(code, mutant.file, "exec")
        except SyntaxError:
            return None
    return code


def draw(texts: dict[str, str], count: int, seed: int) -> tuple[list[Mutant], int]:
    """Draws `count` mutants of files, and counts all places that could be changed."""
    pool = sorted((m for file, text in texts.items() for m in candidates(file, text, seed)), key=lambda m: m.key)
    valid = (mutant for mutant in pool if changed(mutant, texts[mutant.file]) is not None)
    return list(itertools.islice(valid, count)), len(pool)
