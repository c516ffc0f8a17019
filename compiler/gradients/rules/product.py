"""Matrix products."""

from __future__ import annotations

from ..step import Grads, Refused, Rule, Step
from ..terms import Term, sum_to


def _turned(x: Term, rank: int) -> Term:
    return x.transpose(*range(rank - 2), rank - 1, rank - 2)


def _matmul(s: Step) -> Grads:
    """dA = dY B', dB = A' dY; a vector is a matrix of one row or column; what was repeated is summed."""
    a, b, dy = s.x, s.input(1), s.dy
    ranks = [s.rank(0), s.rank(1)]
    if 1 in ranks:
        return _with_vector(s, ranks)
    grads: list[Term | None] = [None, None]
    if s.wants(0):
        grads[0] = _summed(dy.op("MatMul", _turned(b, ranks[1])), s, 0)
    if s.wants(1) and ranks[1] == 2 and ranks[0] > 2:
        # A weight: all places at once, instead of a matrix for each and their sum.
        rows, columns = a.reshape(-1, a.dim(-1)), dy.reshape(-1, b.dim(-1))
        grads[1] = rows.transpose(1, 0).op("MatMul", columns)
    elif s.wants(1):
        grads[1] = _summed(_turned(a, ranks[0]).op("MatMul", dy), s, 1)
    return grads


def _with_vector(s: Step, ranks: list[int]) -> Grads:
    """One of them is a vector: its gradient and the other's as sums of products."""
    a, b, dy = s.x, s.input(1), s.dy
    if ranks == [1, 1]:
        return [dy * b, dy * a]
    if ranks[1] == 1:
        column = dy.ints("Unsqueeze", [-1])
        return [column * b, (column * a).sum(range(ranks[0] - 1), keep=False) if s.wants(1) else None]
    row = dy.ints("Unsqueeze", [-2])
    others = [i for i in range(ranks[1]) if i != ranks[1] - 2]
    grad = (row * b).sum(others, keep=False) if s.wants(0) else None
    return [grad, a.ints("Unsqueeze", [-1]) * row]


def _summed(found: Term, s: Step, i: int) -> Term:
    """Summed over the batch axes along which input `i` was repeated. The last two are right already."""
    lead, own = s.y.dims, s.input(i).dims
    if lead is not None and own is not None:
        found.has_dims((*lead[:-2], *own[-2:]))
    return sum_to(found, found, s.input(i))


def _gemm(s: Step) -> Grads:
    """Y = alpha A' B' + beta C, each of A and B as it is or turned."""
    a, b, dy = s.x, s.input(1), s.dy
    ta, tb = s.attr("transA", 0), s.attr("transB", 0)
    alpha, beta = s.attr("alpha", 1.0), s.attr("beta", 1.0)

    def gemm(left: Term, right: Term, turn_left: int, turn_right: int) -> Term:
        return left.op("Gemm", right, transA=turn_left, transB=turn_right, alpha=alpha)

    grads: list[Term | None] = [None, None, None]
    if s.wants(0):
        grads[0] = gemm(b, dy, tb, 1) if ta else gemm(dy, b, 0, 1 - tb)
    if s.wants(1):
        grads[1] = gemm(dy, a, 1, ta) if tb else gemm(a, dy, 1 - ta, 0)
    if s.wants(2):
        grads[2] = s.to_input(2, dy if beta == 1 else dy * beta)
    return grads


def _einsum(s: Step) -> Grads:
    """Each operand's gradient is the Einsum of the output's and all others; what was summed over alone is repeated."""
    equation = str(s.attr("equation")).replace(" ", "")
    terms, _, output = equation.partition("->")
    operands = terms.split(",")
    if "->" not in equation:
        letters = sorted(set(terms) - {","})
        output = "".join(c for c in letters if terms.count(c) == 1)
    if "." in equation or any(len(set(o)) < len(o) for o in (*operands, output)):
        raise Refused(f"its equation '{equation}' has an ellipsis, or a letter twice in one operand")
    grads: list[Term | None] = []
    for i, own in enumerate(operands):
        if not s.wants(i):
            grads.append(None)
            continue
        rest = [k for k in range(len(operands)) if k != i]
        there = set(output).union(*(operands[k] for k in rest))
        kept = "".join(c for c in own if c in there)
        text = ",".join([output, *(operands[k] for k in rest)]) + "->" + kept
        found = s.dy.op("Einsum", *(s.input(k) for k in rest), equation=text)
        if kept != own:
            found = found.ints("Unsqueeze", [d for d, c in enumerate(own) if c not in there]).expand(s.input(i))
        grads.append(found)
    return grads


RULES: dict[str, Rule] = {"Einsum": _einsum, "Gemm": _gemm, "MatMul": _matmul}
