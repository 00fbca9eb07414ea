"""The names of the methods, as `purify(method=...)` and every command take them."""

METHODS = ("npd", "r-cnpd", "e-cnpd", "a-cnpd")
