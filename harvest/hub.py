"""What can go wrong between here and the hub, as exception classes."""


def network_errors() -> tuple[type[Exception], ...]:
    """Exceptions of a failed look-up or download; each version of huggingface_hub has its HTTP library."""
    from huggingface_hub import errors

    http_error = getattr(errors, "HTTPError", None)
    return (OSError,) if http_error is None else (OSError, http_error)
