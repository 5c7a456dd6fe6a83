"""A scripted upstream that speaks Anthropic's API, for the demo, the tests and the bench; apart from the proxy."""
