"""Who is asking, and may they: devices of the one group, readers, operators. Every route names one of them.

A token is looked up by its sha256. How long the lookup takes tells at most something about the hash of a guess, and
nobody can work backwards from there: no further care about timing is needed.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from cema.cloud.api.context import Context, get_context
from cema.cloud.store.base import DeviceRow, UserRow
from cema.errors import AuthError, EnrolmentError, ForbiddenError, shown
from cema.wire.tokens import token_digest

OPERATOR, READER = "operator", "reader"


def presented(request: Request) -> str:
    """sha256 of the bearer token. Raises AuthError."""
    given = request.headers.getlist("authorization")
    # of two, a proxy in front may have looked at the other
    scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or not token.strip():
        raise _refused(
            request,
            "missing",
            "expected one header 'Authorization: Bearer <token>'",
            "'cema device enrol' makes a device's token, 'cema user add' a person's",
        )
    return token_digest(token.strip())


def known_device(group: str, request: Request) -> DeviceRow:
    """The device behind the key, if it belongs to ``group``. Raises AuthError, ForbiddenError, EnrolmentError."""
    device = enrolled_device(group, request)
    if device.token_expires_ms is not None:
        raise EnrolmentError(
            f"the one-time token of device {device.device_id!r} is good for nothing but to hand in a key",
            hint="start the device's agent: it does that first; an older one has to be upgraded",
        )
    return device


def enrolled_device(group: str, request: Request) -> DeviceRow:
    """As ``known_device``; a one-time token that has not expired will do."""
    context, digest = get_context(request), presented(request)
    device = context.store.device_by_token(digest)
    if device is None:
        if context.store.user_by_token(digest) is not None:
            raise ForbiddenError("this is a person's token", hint="devices have keys of their own")
        raise _unknown(request)
    if device.token_expires_ms is not None and device.token_expires_ms <= context.clock_ms():
        raise _refused(
            request,
            "expired",
            f"the one-time token of device {device.device_id!r} has expired",
            "revoke the device and enrol it anew",
        )
    if device.group != group:
        raise ForbiddenError(
            f"device {device.device_id!r} belongs to group {device.group!r}, not to {shown(group)}",
            hint="check 'group' in device.toml",
        )
    return device


def within_limits(context: Context, device: DeviceRow) -> DeviceRow:
    """One more request of a device. Raises OverloadedError."""
    context.requests.check(device.device_id)
    context.requests.spend(device.device_id, 1)
    return device


def authenticated(group: str, request: Request) -> DeviceRow:
    return within_limits(get_context(request), known_device(group, request))


def enrolling(group: str, request: Request) -> DeviceRow:
    return within_limits(get_context(request), enrolled_device(group, request))


def reader(request: Request) -> UserRow:
    """The user behind the token, whatever the role. Raises AuthError, ForbiddenError."""
    context, digest = get_context(request), presented(request)
    user = context.store.user_by_token(digest)
    if user is None:
        if context.store.device_by_token(digest) is not None:
            raise ForbiddenError("this is a device's token", hint="'cema user add' makes one for people")
        raise _unknown(request)
    return user


def operator(request: Request) -> UserRow:
    user = reader(request)
    if user.role != OPERATOR:
        raise ForbiddenError(
            f"user {user.name!r} is a {user.role} and may look, but not change anything",
            hint="ask an operator ('cema user list' shows them)",
        )
    return user


def _unknown(request: Request) -> AuthError:
    return _refused(
        request, "unknown", "this token is not known, or was revoked", "enrol the device ('cema device enrol')"
    )


def _refused(request: Request, reason: str, message: str, hint: str) -> AuthError:
    get_context(request).metrics.refusals.labels(reason).inc()
    return AuthError(message, hint=hint)


ContextOf = Annotated[Context, Depends(get_context)]
Device = Annotated[DeviceRow, Depends(authenticated)]
Enrolling = Annotated[DeviceRow, Depends(enrolling)]
Presented = Annotated[str, Depends(presented)]
Reader = Annotated[UserRow, Depends(reader)]
Operator = Annotated[UserRow, Depends(operator)]
