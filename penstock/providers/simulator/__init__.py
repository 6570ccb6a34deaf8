"""A strict OpenAI-compatible server that misbehaves on request. It must not know the rest of the house."""
