"""Built-in tasks. None is registered unless the application asks for it: ``scheduler.register(http(name=..., url=...))``."""

from asyncsched.tasks._echo import echo
from asyncsched.tasks._http import HttpResult, http
from asyncsched.tasks._shell import ShellResult, shell

__all__ = ["HttpResult", "ShellResult", "echo", "http", "shell"]
