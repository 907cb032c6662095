"""The end of a task at its consumer: usage checked, receipt countersigned, everything written once and together."""

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.metering.ledger import Ledger
from ioc_node.metering.receipts import KeptReceipt, countersign
from ioc_node.metering.usage import check_usage
from ioc_node.runtime.store import Store
from ioc_node.tasks.courier import Courier
from ioc_node.tasks.journal import AttemptRow, Journal
from ioc_node.tasks.live import LiveTask
from ioc_node.tasks.story import CHARGED, Ending, now_ms
from ioc_wire.errors import WireError
from ioc_wire.market import ReleaseLease
from ioc_wire.tasks import CancelTask, SettleTask, TaskEvent, format_task_id

_log = structlog.get_logger()


class Settling:
    """Ends tasks in the journal, each exactly once, with at most one receipt."""

    def __init__(
        self, key: Ed25519PrivateKey, store: Store, journal: Journal, ledger: Ledger, courier: Courier
    ) -> None:
        self._key = key
        self._store = store
        self._journal = journal
        self._ledger = ledger
        self._courier = courier

    def settle(self, task: LiveTask, row: AttemptRow, last: TaskEvent) -> Ending:
        """End a task by the last event of its attempt. A usage record that cannot be believed is disputed: the task
        ends all the same, and no receipt is given."""
        ending = Ending(last.state, last.text, last.outputs, row.provider, row.lease.cid)
        receipt = self._receipt(task, row, last)
        with self._store.transaction(durable=True):
            if not self._journal.end(task.id, ending, now_ms(), None if receipt is None else receipt.id):
                return ending
            self._journal.set_phase(task.id, row.attempt, "over")
            if receipt is not None:
                self._ledger.add(receipt)
                self._courier.send(row.provider, SettleTask(task.id, receipt.signed))
        task.receipt = None if receipt is None else receipt.id
        self._courier.wake(row.provider)
        return ending

    def _receipt(self, task: LiveTask, row: AttemptRow, last: TaskEvent) -> KeptReceipt | None:
        if last.usage is None or last.state not in CHARGED:
            return None
        try:
            seen_ms = now_ms() - row.ordered_ms
            check_usage(last.usage, row.lease, row.provider.key, seen_ms=seen_ms, state=last.state)
            return countersign(last.usage, self._key, now_ms=now_ms())
        except WireError as error:
            task.note(f"the usage record is disputed: {error}")
            _log.warning("usage_disputed", task=format_task_id(task.id), error=str(error))
            return None

    def end(self, task: LiveTask, ending: Ending) -> None:
        """End a task that no attempt brought to an end; one that is settled stays as it is."""
        known = self._journal.row(task.id)
        if known is not None and known.ended_ms is not None:
            return
        with self._store.transaction(durable=True):
            self._journal.end(task.id, ending, now_ms(), None)

    def give_up(self, task: LiveTask, row: AttemptRow, reason: str) -> None:
        """An attempt is superseded: its provider is told, when it can be reached, to stop it and free its lease."""
        known = self._journal.attempts(task.id)[-1]
        with self._store.transaction():
            self._journal.set_phase(task.id, row.attempt, "over")
            if known.phase == "started":
                self._courier.send(row.provider, CancelTask(task.id, row.attempt, reason[:200]))
            self._courier.send(row.provider, ReleaseLease(row.lease.lease))
        self._courier.wake(row.provider)

    def forget_outputs(self, task: LiveTask) -> None:
        """Let the provider drop the outputs of a settled task."""
        ending = task.ending
        if ending is None or ending.holder is None or task.receipt is None or not ending.outputs:
            return
        receipt = self._ledger.receipt(task.receipt)
        if receipt is not None:
            self._courier.send(ending.holder, SettleTask(task.id, receipt.signed, forget=True))
            self._courier.wake(ending.holder)
