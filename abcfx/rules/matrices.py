"""Rules of functions of whole matrices, whose size must not grow with the width.

f(A) that depends on A + I as on A, such as an inverse, is taken to be of order 1; others are of a degree: f(k A) =
k^degree f(A).
"""

from __future__ import annotations

from abcfx.rules.op import Op
from abcfx.rules.registry import plain_name, register_rule
from abcfx.rules.shape import count_results
from abcfx.rules.values import Value

_DEGREES = {
    "cholesky": 0.5,
    "linalg_matrix_sqrth": 0.5,
    "linalg_eigvals": 1.0,
    "linalg_eigvalsh": 1.0,
    "linalg_svdvals": 1.0,
}


@register_rule(*_DEGREES)
def of_degree(op: Op, x: Value, *_: object) -> Value:
    """Handle functions f of a matrix with f(k A) = k^degree f(A), such as cholesky.

    Entries ~ n^s become ~ n^(degree s). The matrix must keep its shape when the model gets wider.
    """
    return op.power(op.fixed(x, (-2, -1)), _DEGREES[str(plain_name(op.at.target))])


@register_rule("cov")
def cov(op: Op, x: Value, *_: object, fweights: Value | None = None, aweights: Value | None = None) -> Value:
    """Handle torch.cov, the covariance of the rows of a matrix of a fixed shape: as large as squares of entries of x.

    Weights of the observations, if given, are divided by their own sum and so are of order 1.
    """
    squares = op.power(op.fixed(x, (-2, -1)), 2.0)
    for weights in (each for each in (fweights, aweights) if each is not None):
        squares = op.product(squares, op.pointwise(weights), ())
    return squares


@register_rule("inverse", "linalg_tensorinv", "pinverse", "cholesky_inverse", "logdet", "matrix_exp", "matrix_power")
def of_order_one(op: Op, x: Value, *_: object) -> Value:
    """Handle inverses, matrix exponentials and the logarithm of determinants: taken to be of order 1.

    The matrix must keep its shape when the model gets wider.
    """
    return op.pointwise(op.fixed(x, (-2, -1)))


@register_rule("linalg_inv_ex", "linalg_cholesky_ex")
def with_info(op: Op, x: Value) -> tuple[Value, Value]:
    """Handle inv_ex and cholesky_ex: a matrix, taken to be of order 1, and integers that say whether it exists."""
    return of_order_one(op, x), op.constant()


@register_rule("det")
def det(op: Op, x: Value) -> Value:
    """Handle the determinant of matrices with n rows, where n does not grow: as large as the n-th power of an entry."""
    rows = x.shape[-1] if x.shape else 1
    return op.power(op.fixed(x, (-2, -1)), float(max(rows, 1)))


@register_rule("linalg_cond", "corrcoef")
def without_scale(op: Op, x: Value, p: object = None) -> Value:
    """Handle condition numbers and correlations: of order 1, and the same if x is multiplied by a number."""
    return op.norm(op.fixed(x, (-2, -1)))


@register_rule("slogdet")
def slogdet(op: Op, x: Value) -> tuple[Value, Value]:
    """Handle slogdet: the sign of the determinant, a constant, and the logarithm of its absolute value, of order 1."""
    return op.constant(), of_order_one(op, x)


@register_rule("linalg_eig", "linalg_eigh")
def eig(op: Op, x: Value, UPLO: str = "L") -> tuple[Value, Value]:
    """Handle eigh and the like, for matrices of a fixed shape: eigenvalues as large as x, eigenvectors of order 1."""
    held = op.fixed(x, (-2, -1))
    return op.nonlinear(held), op.norm(held)


@register_rule("qr", "linalg_polar")
def qr(op: Op, x: Value, *_: object) -> tuple[Value, Value]:
    """Handle QR and polar decompositions of a fixed shape: the first has entries of order 1, the second those of x."""
    held = op.fixed(x, (-2, -1))
    return op.norm(held), op.nonlinear(held)


@register_rule("svd")
def svd(op: Op, x: Value, *_: object) -> tuple[Value, Value, Value]:
    """Handle a singular value decomposition: U and V with entries of order 1, and values as large as entries of x."""
    held = op.fixed(x, (-2, -1))
    return op.norm(held), op.nonlinear(held), op.norm(held)


@register_rule("linalg_solve", "linalg_tensorsolve", "linalg_solve_ex", "linalg_solve_triangular", "solve_triangular")
def solve(op: Op, matrix: Value, x: Value, *_: object) -> Value | tuple[Value, Value]:
    """Handle the solution y of A y = x: the product of x and the inverse of A, which is taken to be of order 1."""
    y = op.product(of_order_one(op, matrix), x, matrix.dims_at([-1]))
    return (y, op.constant()) if count_results(op) > 1 else y


@register_rule("cholesky_solve", "triangular_solve")
def solve_for_first(op: Op, x: Value, matrix: Value, *_: object) -> Value | tuple[Value, Value]:
    """Handle functions that solve A y = x for y and take x first, A second: entries as large as those of x."""
    return solve(op, matrix, x)
