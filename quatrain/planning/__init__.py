"""Planning: what a model and its training cost in parameters, memory, operations and time, before they cost it."""
