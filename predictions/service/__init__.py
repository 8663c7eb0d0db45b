"""The lookup as a service over HTTP, with a page for people: `predictions serve`."""
