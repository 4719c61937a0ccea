"""The linear program of learning-rate exponents, solved by HiGHS, and `find_c` and `find_c_dag` on top. No torch."""
