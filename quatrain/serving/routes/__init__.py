"""The routes of the server: every module here that has a `router` adds its own."""
