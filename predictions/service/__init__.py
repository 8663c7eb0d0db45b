"""Lookups over HTTP, with a web page: `predictions serve`."""
