"""Linear programs over levels, solved by HiGHS: rows, their optimum, and `find_c`, `find_c_dag` on top. No torch."""
