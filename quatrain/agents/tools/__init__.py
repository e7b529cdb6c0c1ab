"""The tools that ship: one file each, with a `SPEC` (`quatrain.agents.toolbox`)."""
