"""What kind of process this is: edgec's own command line, or somebody's program that uses edgec as a library."""

from __future__ import annotations

command_line = False
"""Set by the command line. Only there may an import keep other packages out: a user's process stays as it is."""
