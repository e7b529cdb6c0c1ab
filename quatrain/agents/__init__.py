"""Agents: tools, the loop that runs them, its flight recorder, the sandbox, and MCP."""
