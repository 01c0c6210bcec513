"""An asyncio client for the Kie.ai jobs API that never pays twice and never loses a paid task."""

from .batch import Batch, Outcome
from .callbacks.base import Address, CallbackVerdict
from .callbacks.check import CallbackCheck
from .callbacks.receiver import CallbackReceiver
from .callbacks.server import ServedReceiver
from .config import Budget, Limits, Network, PollSchedule, Rate
from .errors import (
    AnswerUnreadable,
    ApiError,
    AuthenticationError,
    BatchStopped,
    BudgetExceeded,
    CallbackRejected,
    CreateOutcomeUnknown,
    CreatesHalted,
    DownloadFailed,
    FileError,
    InsufficientCredits,
    InvalidRequest,
    JournalAway,
    JournalError,
    JournalFull,
    JournalLocked,
    KieError,
    Maintenance,
    NotFound,
    QueueFull,
    QuotaExceeded,
    RateLimited,
    RefConflict,
    RequestRejected,
    ResultExpired,
    ResultUnreadable,
    ServerError,
    SessionMisuse,
    TaskAbandoned,
    TaskDetached,
    TaskError,
    TaskFailed,
    TaskNotNoted,
    TaskTimedOut,
    TransportError,
    UploadRefused,
    Withdrawn,
)
from .events import SessionEvent, SessionStats, Weather
from .handle import TaskHandle
from .inputs.kling import KlingAvatar
from .inputs.media import Media
from .inputs.request import TaskRequest
from .journal.postgres import PostgresJournal
from .journal.sqlite import SqliteJournal
from .models import JobState, SettledTask, TaskPhase, TaskRecord, TaskResult, TaskState, UploadedFile
from .sandbox import Sandbox
from .session import KieSession

__version__ = "0.1.0"

__all__ = [
    "Address",
    "AnswerUnreadable",
    "ApiError",
    "AuthenticationError",
    "Batch",
    "BatchStopped",
    "Budget",
    "BudgetExceeded",
    "CallbackCheck",
    "CallbackReceiver",
    "CallbackRejected",
    "CallbackVerdict",
    "CreateOutcomeUnknown",
    "CreatesHalted",
    "DownloadFailed",
    "FileError",
    "InsufficientCredits",
    "InvalidRequest",
    "JobState",
    "JournalAway",
    "JournalError",
    "JournalFull",
    "JournalLocked",
    "KieError",
    "KieSession",
    "KlingAvatar",
    "Limits",
    "Maintenance",
    "Media",
    "Network",
    "NotFound",
    "Outcome",
    "PollSchedule",
    "PostgresJournal",
    "QueueFull",
    "QuotaExceeded",
    "Rate",
    "RateLimited",
    "RefConflict",
    "RequestRejected",
    "ResultExpired",
    "ResultUnreadable",
    "Sandbox",
    "ServedReceiver",
    "ServerError",
    "SessionEvent",
    "SessionMisuse",
    "SessionStats",
    "SettledTask",
    "SqliteJournal",
    "TaskAbandoned",
    "TaskDetached",
    "TaskError",
    "TaskFailed",
    "TaskHandle",
    "TaskNotNoted",
    "TaskPhase",
    "TaskRecord",
    "TaskRequest",
    "TaskResult",
    "TaskState",
    "TaskTimedOut",
    "TransportError",
    "UploadRefused",
    "UploadedFile",
    "Weather",
    "Withdrawn",
]
