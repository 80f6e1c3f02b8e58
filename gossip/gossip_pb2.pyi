from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_UNSPECIFIED: _ClassVar[State]
    STATE_WAITING: _ClassVar[State]
    STATE_LEARNING: _ClassVar[State]
    STATE_FINISHED: _ClassVar[State]
    STATE_LEAVING: _ClassVar[State]

class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATUS_UNSPECIFIED: _ClassVar[Status]
    STATUS_PART: _ClassVar[Status]
    STATUS_TAKEN: _ClassVar[Status]
    STATUS_DUPLICATE: _ClassVar[Status]
    STATUS_HOLD: _ClassVar[Status]
    STATUS_UNKNOWN: _ClassVar[Status]
    STATUS_STALE: _ClassVar[Status]
    STATUS_LATE: _ClassVar[Status]
    STATUS_GIVEN_UP: _ClassVar[Status]
    STATUS_NOTHING: _ClassVar[Status]
    STATUS_MALFORMED: _ClassVar[Status]
    STATUS_WRONG_VERSION: _ClassVar[Status]
    STATUS_WRONG_RUN: _ClassVar[Status]
    STATUS_WRONG_RECIPIENT: _ClassVar[Status]
    STATUS_UNKNOWN_PEER: _ClassVar[Status]
    STATUS_FORGED: _ClassVar[Status]
    STATUS_REPLAYED: _ClassVar[Status]
    STATUS_WRONG_LAYOUT: _ClassVar[Status]
    STATUS_OVERSIZED: _ClassVar[Status]
    STATUS_NOT_FINITE: _ClassVar[Status]
    STATUS_HUGE: _ClassVar[Status]
    STATUS_BAD_WEIGHT: _ClassVar[Status]
    STATUS_OUT_OF_ORDER: _ClassVar[Status]
    STATUS_NO_CERTIFICATE: _ClassVar[Status]
STATE_UNSPECIFIED: State
STATE_WAITING: State
STATE_LEARNING: State
STATE_FINISHED: State
STATE_LEAVING: State
STATUS_UNSPECIFIED: Status
STATUS_PART: Status
STATUS_TAKEN: Status
STATUS_DUPLICATE: Status
STATUS_HOLD: Status
STATUS_UNKNOWN: Status
STATUS_STALE: Status
STATUS_LATE: Status
STATUS_GIVEN_UP: Status
STATUS_NOTHING: Status
STATUS_MALFORMED: Status
STATUS_WRONG_VERSION: Status
STATUS_WRONG_RUN: Status
STATUS_WRONG_RECIPIENT: Status
STATUS_UNKNOWN_PEER: Status
STATUS_FORGED: Status
STATUS_REPLAYED: Status
STATUS_WRONG_LAYOUT: Status
STATUS_OVERSIZED: Status
STATUS_NOT_FINITE: Status
STATUS_HUGE: Status
STATUS_BAD_WEIGHT: Status
STATUS_OUT_OF_ORDER: Status
STATUS_NO_CERTIFICATE: Status

class Envelope(_message.Message):
    __slots__ = ("version", "run", "sender", "incarnation", "recipient", "recipient_incarnation", "round")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    RECIPIENT_FIELD_NUMBER: _ClassVar[int]
    RECIPIENT_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    version: int
    run: int
    sender: int
    incarnation: int
    recipient: int
    recipient_incarnation: int
    round: int
    def __init__(self, version: _Optional[int] = ..., run: _Optional[int] = ..., sender: _Optional[int] = ..., incarnation: _Optional[int] = ..., recipient: _Optional[int] = ..., recipient_incarnation: _Optional[int] = ..., round: _Optional[int] = ...) -> None: ...

class Greeting(_message.Message):
    __slots__ = ("envelope", "state", "conf", "app", "counts_you", "began_without_you", "status", "apart", "held_up", "taken")
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CONF_FIELD_NUMBER: _ClassVar[int]
    APP_FIELD_NUMBER: _ClassVar[int]
    COUNTS_YOU_FIELD_NUMBER: _ClassVar[int]
    BEGAN_WITHOUT_YOU_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    APART_FIELD_NUMBER: _ClassVar[int]
    HELD_UP_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    envelope: Envelope
    state: State
    conf: int
    app: str
    counts_you: bool
    began_without_you: bool
    status: Status
    apart: bool
    held_up: int
    taken: int
    def __init__(self, envelope: _Optional[_Union[Envelope, _Mapping]] = ..., state: _Optional[_Union[State, str]] = ..., conf: _Optional[int] = ..., app: _Optional[str] = ..., counts_you: _Optional[bool] = ..., began_without_you: _Optional[bool] = ..., status: _Optional[_Union[Status, str]] = ..., apart: _Optional[bool] = ..., held_up: _Optional[int] = ..., taken: _Optional[int] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("envelope", "sequence", "round", "layout", "width", "offset", "data", "share", "broadcast")
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    BROADCAST_FIELD_NUMBER: _ClassVar[int]
    envelope: Envelope
    sequence: int
    round: int
    layout: int
    width: int
    offset: int
    data: bytes
    share: Share
    broadcast: Broadcast
    def __init__(self, envelope: _Optional[_Union[Envelope, _Mapping]] = ..., sequence: _Optional[int] = ..., round: _Optional[int] = ..., layout: _Optional[int] = ..., width: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., share: _Optional[_Union[Share, _Mapping]] = ..., broadcast: _Optional[_Union[Broadcast, _Mapping]] = ...) -> None: ...

class Share(_message.Message):
    __slots__ = ("weight", "scant")
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    SCANT_FIELD_NUMBER: _ClassVar[int]
    weight: float
    scant: bool
    def __init__(self, weight: _Optional[float] = ..., scant: _Optional[bool] = ...) -> None: ...

class Broadcast(_message.Message):
    __slots__ = ("tag", "turn", "final")
    TAG_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    tag: str
    turn: int
    final: bool
    def __init__(self, tag: _Optional[str] = ..., turn: _Optional[int] = ..., final: _Optional[bool] = ...) -> None: ...

class Withdrawal(_message.Message):
    __slots__ = ("envelope", "sequence")
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    envelope: Envelope
    sequence: int
    def __init__(self, envelope: _Optional[_Union[Envelope, _Mapping]] = ..., sequence: _Optional[int] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("status", "round", "incarnation")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    status: Status
    round: int
    incarnation: int
    def __init__(self, status: _Optional[_Union[Status, str]] = ..., round: _Optional[int] = ..., incarnation: _Optional[int] = ...) -> None: ...

class Question(_message.Message):
    __slots__ = ("envelope", "round", "offset")
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    envelope: Envelope
    round: int
    offset: int
    def __init__(self, envelope: _Optional[_Union[Envelope, _Mapping]] = ..., round: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("status", "round", "layout", "width", "offset", "data")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    status: Status
    round: int
    layout: int
    width: int
    offset: int
    data: bytes
    def __init__(self, status: _Optional[_Union[Status, str]] = ..., round: _Optional[int] = ..., layout: _Optional[int] = ..., width: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...
