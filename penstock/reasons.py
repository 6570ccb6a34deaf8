"""Why things fail, as a bounded set of names. It must not know what follows from them."""

from enum import StrEnum


class Reason(StrEnum):
    """Why an attempt did not succeed, or a job is dead: a bounded set, safe as a label."""

    THROTTLED = "throttled"
    OVERLOADED = "overloaded"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    MALFORMED_ANSWER = "malformed_answer"
    OUTPUT_INVALID = "output_invalid"
    OUTPUT_TRUNCATED = "output_truncated"
    BAD_REQUEST = "bad_request"
    CONTEXT_LENGTH = "context_length"
    CONTENT_POLICY = "content_policy"
    AUTHENTICATION = "authentication"
    MODEL_NOT_FOUND = "model_not_found"
    QUOTA_EXHAUSTED = "quota_exhausted"
    LIMITED = "limited"
    LIMITER_AWAY = "limiter_away"
    UNAVAILABLE = "unavailable"
    TOO_LARGE = "too_large"
    BUDGET_HELD = "budget_held"
    BUDGET_EXHAUSTED = "budget_exhausted"
    INVALID = "invalid"
    DEADLINE = "deadline"
    POISON = "poison"
    WORKER_LOST = "worker_lost"
    TIME_LIMIT = "time_limit"
    INTERNAL = "internal"
