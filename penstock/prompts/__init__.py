"""Prompts as versioned data files: read, checked, locked and made into messages. It must not know models or prices."""

from penstock.prompts.library import PromptLibrary
from penstock.prompts.manifest import Variable
from penstock.prompts.prompt import Negative, Prompt

__all__ = ["Negative", "Prompt", "PromptLibrary", "Variable"]
