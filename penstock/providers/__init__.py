"""Those who answer: one adapter over LiteLLM, and a simulator that is reached over HTTP like any provider."""
