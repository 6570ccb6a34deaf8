"""What stands between a job and a provider: limiter and breaker, shared by all processes through Redis.

They must not know jobs, prompts or money. Every decision is one Lua script, in `lua/`.
"""
