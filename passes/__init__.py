"""Mechanical rewrites of a GraphModule from plain arguments; no theory lives here."""
