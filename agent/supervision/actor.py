"""One actor per deployment: the only writer of its state.

It takes one thing at a time out of its inbox (an observation, or a change that an operator asked for), lets
`decide` say what follows, performs the actions, and makes the result durable. Everything slow (planning,
fetching, probing, draining, waiting for an exit) runs in tasks of its own, which answer by posting an
observation. Others read `status()`, an immutable picture.

Two cancellations, and no path from the second to the first: an *engine* is ended only by the TERM and KILL
actions; cancelling the actor (`close`) ends the agent's own tasks and touches no process.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from agent.errors import AgentError, NotFound, StoreError, Unavailable
from agent.planning.plan import Plan
from agent.runtimes import logs
from agent.runtimes.base import Handle, LaunchError, Usage
from agent.spec import DeploymentSpec
from agent.status import (
    Condition,
    DeploymentStatus,
    DeviceHold,
    DeviceUse,
    Diagnosis,
    DiagnosisCode,
    ExitStatus,
    Granted,
    Measured,
    Phase,
    ProbeKind,
    ProbeVerdict,
    Progress,
    Severity,
    Verdict,
)  # fmt: skip
from agent.store.records import Change, DeploymentRecord, InstanceRecord
from agent.supervision import clock, codec, drift, launching, views
from agent.supervision import machine as m
from agent.supervision.decide import decide
from agent.supervision.journal import Journal
from agent.supervision.machine import Action, Goal, Observation, Rules
from agent.supervision.preparation import PreparationError
from agent.supervision.probing import Prober, Target
from agent.supervision.services import Services
from agent.supervision.tasks import Tasks

log = structlog.get_logger(__name__)

#: Phases in which a process may exist.
LIVE = frozenset({Phase.LOADING, Phase.READY, Phase.UNREADY, Phase.DRAINING, Phase.STOPPING, Phase.STUCK})
#: Phases in which the instance is probed.
PROBED = frozenset({Phase.LOADING, Phase.READY, Phase.UNREADY})
#: Phases in which nothing is reserved: no process exists, and none is about to.
RELEASED = frozenset({Phase.PENDING, Phase.FAILED, Phase.STOPPED, Phase.DELETED})
#: Phases in which an engine is judged by its plan: while it loads, its use of devices still grows.
SERVING = frozenset({Phase.READY, Phase.UNREADY})
#: Seconds by which the lines of transitions are written later.
LOG_DELAY = 0.02
#: A look at the processes of an ended instance usually takes a millisecond, and is then waited for on the spot: a crash
#: stays one burst of observations. A longer one (seconds) goes on beside the loop.
QUICK_LOOK = 0.05
#: Seconds that the engine has the machine for itself until its exec: what is still to be written of its launch, by two
#: threads, took a core or two from it, and a millisecond. Should the agent die meanwhile, it finds the engine.
GIVE_WAY = 0.004
#: A prober that failed by a bug begins again after this long (seconds).
PROBE_RETRY = 1.0
#: What did not answer what became of an instance is asked again after this long (seconds).
LOOK_RETRY = 1.0
#: A store that refuses to write is tried again this often (seconds), until the backlog is down.
STORE_RETRY = 2.0


@dataclass(slots=True)
class Update:
    """A change that an operator asked for: `apply` makes the new record; the caller waits on `done`."""

    apply: Callable[[DeploymentRecord], tuple[DeploymentRecord, tuple[Change, ...]]]
    done: asyncio.Future[DeploymentStatus]


class Actor:
    """Supervises one deployment. Made with a durable record, and started (at boot after `adoption.restore`)."""

    def __init__(self, record: DeploymentRecord, spec: DeploymentSpec, services: Services) -> None:
        self.name = record.name
        self.record = record
        self.spec = spec
        self.services = services
        self.rules = Rules.of(spec)
        self.state = codec.state(record)
        self.plan: Plan | None = None
        self._written: tuple[Plan, str] | None = None  # a plan and its text: the same for many instances
        self.handle: Handle | None = None
        self.journal = Journal(record.name, services)
        self.progress: Progress | None = None
        self.granted: Granted | None = None
        self.usage: Usage | None = None
        self.verdicts: dict[ProbeKind, ProbeVerdict] = {}
        self.port = 0
        self.held = ""  # what the ended instance still holds of its devices
        self.device_uses: tuple[DeviceUse, ...] = ()
        self.measured: Measured | None = None
        self.conditions: dict[str, Condition] = {}
        self._drifting: Counter[str] = Counter()  # bad judgements in a row, by reason
        self._sought = False  # whether an earlier agent's instance exists is not known yet
        self._gathering = asyncio.Lock()
        self._inbox: asyncio.Queue[Observation | Update] = asyncio.Queue()
        self._over: AgentError | None = None  # why it takes no more updates
        self._tasks = Tasks(record.name)
        self._main: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    # For others ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to work."""
        self._main = asyncio.create_task(self._run(), name=f"actor {self.name}")
        self.post(m.Woken())

    async def close(self) -> None:
        """End the agent's tasks for this deployment. Its engine is not touched and is adopted by the next agent."""
        if self._timer:
            self._timer.cancel()
        tasks = [task for task in (self._main, *self._tasks) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._refuse(Unavailable("the agent stops"))
        await self._flush()

    @property
    def instance(self) -> InstanceRecord | None:
        """The present (or last) run."""
        return self.journal.instance

    def post(self, seen: Observation) -> None:
        self._inbox.put_nowait(seen)

    def wake(self) -> None:
        """Have it look at the time, and at what is wanted."""
        self.post(m.Woken())

    async def update(
        self, apply: Callable[[DeploymentRecord], tuple[DeploymentRecord, tuple[Change, ...]]]
    ) -> DeploymentStatus:
        """Change the record; returns when that is durable. Raises what `apply` raises, `StoreError`, `NotFound` when
        the deployment is deleted first, and `Unavailable` when the agent stops."""
        if self._over is not None:
            raise self._over
        done: asyncio.Future[DeploymentStatus] = asyncio.get_running_loop().create_future()
        self._inbox.put_nowait(Update(apply, done))
        return await done

    def status(self) -> DeploymentStatus:
        return views.deployment(self)

    @property
    def reserved_bytes(self) -> int:
        """Host memory that this deployment holds or will hold: also between a crash and the next attempt."""
        return self.plan.host_bytes if self.plan and self.state.phase not in RELEASED else 0

    def hold(self, device: str) -> DeviceHold | None:
        """This deployment's hold on a device, if it has one: from its plan until its memory is seen to be back."""
        if self.plan is None or device not in self.plan.devices or self.state.phase in RELEASED:
            return None
        return DeviceHold(
            deployment=self.name, instance=self.instance.id if self.instance else "",
            bytes=self.plan.device_bytes.get(device, 0), ended=bool(self.held),
            since=round(clock.as_wall(self.state.entered), 3), message=self.held,
        )  # fmt: skip

    @property
    def resident_bytes(self) -> int:
        """Host memory that the live instance used at the last sample."""
        return self.usage.memory_bytes if self.usage else 0

    @property
    def plan_json(self) -> str:
        """The plan as it was stored with the instance, or as it was just made."""
        if self.instance is not None and (self.plan is None or self.plan.generation == self.instance.generation):
            return self.instance.plan_json
        return self._text(self.plan) if self.plan else ""

    def _text(self, plan: Plan) -> str:
        if self._written is None or self._written[0] is not plan:
            self._written = plan, plan.to_json()
        return self._written[1]

    # The loop -----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            item = await self._inbox.get()
            try:
                await (self._change(item) if isinstance(item, Update) else self._step(item))
            except Exception:
                # The outermost loop: a bug costs one step, not the supervision. The next tick looks again.
                log.exception("step failed", deployment=self.name, item=type(item).__name__)
                self.journal.event("InternalError", "a step of the supervisor failed; see the log", Severity.ERROR)
            if not self._inbox.empty():
                continue  # one crash is a burst of observations: they share one transaction
            durable = await self._flush()
            # Shown only now: what a watcher has seen is still so after a kill -9.
            self.services.changed(self.name)
            if durable and self.state.phase is Phase.DELETED:
                self.services.gone(self)
                self._refuse(NotFound(f"deployment {self.name!r} was deleted"))
                return

    def _refuse(self, why: AgentError) -> None:
        """The updates that wait, and all that come."""
        self._over = why
        while not self._inbox.empty():
            item = self._inbox.get_nowait()
            if isinstance(item, Update) and not item.done.done():
                item.done.set_exception(why)

    async def _change(self, update: Update) -> None:
        try:
            record, changes = update.apply(self.record)
            if record is not self.record or changes:
                self.journal.touch()
                record = await self.journal.flush(record, self.state, *changes)
        except AgentError as error:
            if not update.done.done():
                update.done.set_exception(error)
            return
        if record.spec_json != self.record.spec_json:
            self.spec = DeploymentSpec.from_json(record.spec_json)
            self.rules = Rules.of(self.spec)
        self.record = record
        await self._step(m.Wanted(codec.want(record)))
        await self._flush()
        self.services.changed(self.name)  # whoever was answered reads what it wrote
        if not update.done.done():
            update.done.set_result(self.status())

    async def _step(self, seen: Observation) -> None:
        if isinstance(seen, m.Probed):
            self._note_verdict(seen)
        before = self.state
        decision = decide(self.state, seen, self.rules, clock.now())
        self.state = decision.state
        loop = asyncio.get_running_loop()
        for fired in decision.fired:
            line = {"phase": fired.rule.target.value, "reason": fired.rule.id, "message": fired.message}
            # Written a little later: formatting lines is not on the way from a crash to its replacement.
            write = partial(log.info, "transition", deployment=self.name, attempt=self.state.attempt, **line)
            loop.call_later(LOG_DELAY, write)
            if fired.rule.severity is not None:
                self.journal.event(fired.rule.id, fired.message, fired.rule.severity)
        if decision.fired:
            self.journal.touch()
        if self.state.phase is not before.phase:
            self.enter(self.state.phase)
        for action in decision.actions:
            await self.perform(action)
        self._arm_timer()

    def _arm_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wake = m.next_wake(self.state, self.rules)
        if wake is not None:
            delay = max(0.0, wake - clock.now())
            self._timer = asyncio.get_running_loop().call_later(delay, self.post, m.Woken())

    def enter(self, phase: Phase) -> None:
        """What comes with being in a phase, however it was reached: probes run exactly in PROBED phases."""
        if phase in PROBED:
            if "probe" not in self._tasks:
                self._tasks.spawn("probe", self._probe(started=phase is not Phase.LOADING))
        else:
            self._tasks.cancel("probe")
        if phase not in {Phase.STOPPING, Phase.STUCK}:
            self._tasks.cancel("reap")
        if phase is Phase.READY and self.instance is not None and self.instance.ready_at is None:
            self.journal.note(ready_at=clock.wall(), granted_json=codec.dump_granted(self.granted))
            self._measure(self.instance)
        if phase not in {Phase.FETCHING, Phase.LOADING}:
            self.progress = None

    def _measure(self, instance: InstanceRecord) -> None:
        """Remember what this start takes, beside everything else."""
        if self.plan is not None and self.handle is not None:
            path = launching.log_path(instance)
            seen = self.services.ledger.record(self.plan, instance.id, path, self.handle, self.granted)
            self._tasks.spawn("measure", seen)

    # Actions ------------------------------------------------------------------------------------------------------

    async def perform(self, action: Action) -> None:
        match action:
            case Action.CANCEL:
                self._tasks.cancel("prepare")
            case Action.PREPARE:
                await self._plan_again()
            case Action.FETCH:
                self._tasks.spawn("prepare", self._fetch())
            case Action.LAUNCH:
                await self._launch()
            case Action.DRAIN:
                self._drain()
            case Action.TERM:
                self._signal(signal.SIGTERM)
            case Action.KILL:
                self._signal(signal.SIGKILL)
            case Action.REAP:
                await self._reap()
            case Action.FORGET:
                await self._forget()

    async def _plan_again(self) -> None:
        self._tasks.cancel("prepare")
        if self.plan is not None and self.plan.generation == self.record.generation:
            # The restart of a healthy engine must not wait for a new plan while files and policy are the same.
            size = await self.services.preparation.still_valid(self.plan)
            if size is not None:
                self.post(m.Planned(size, fetched=True))
                return
        self.plan = None
        self._tasks.spawn("prepare", self._prepare())

    async def _prepare(self) -> None:
        try:
            self.services.fail("plan")
            # The answer and the reservation that it makes are one step of the loop: no other plan comes between.
            self.plan = await self.services.preparation.plan(
                self.spec, self.record.generation, lambda: self.services.held(self.name)
            )
        except Exception as error:  # noqa: BLE001 - told
            self._attempt_failed("planned", error)
        else:
            self.post(m.Planned(self.plan.variant.bytes, fetched=False))

    async def _fetch(self) -> None:
        def show(progress: Progress) -> None:
            self.progress = progress
            self.services.changed(self.name)

        assert self.plan is not None
        try:
            self.plan = await self.services.preparation.fetch(self.plan, show)
        except Exception as error:  # noqa: BLE001 - told
            self._attempt_failed("fetched", error)
        else:
            self.post(m.Fetched())

    def _attempt_failed(self, what: str, error: Exception) -> None:
        """With the diagnosis that came; a bug is told as one, and leaves no deployment where it is for ever."""
        if isinstance(error, PreparationError):
            diagnosis = error.diagnosis
        else:
            log.error("attempt broke", deployment=self.name, while_it=what, exc_info=error)
            message = f"the agent itself failed while it {what}: {type(error).__name__}"
            diagnosis = Diagnosis(DiagnosisCode.AGENT_FAILED, message, hint="the agent's log says more")
        self.post(m.PrepareFailed(diagnosis))

    async def _launch(self) -> None:
        """Intent durable, then the engine, then its handle durable: the sweep and adoption close every gap."""
        assert self.plan is not None
        services = self.services
        try:
            services.fail("command")
            launch = await launching.prepare(
                self.plan, self._text(self.plan), self.spec, self.state.attempt, services,
                launching.Before(self.port, self.handle, healthy=self._was_healthy),
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001 - told
            self._attempt_failed("made the command", error)
            return
        ended, handle = self.instance, self.handle
        dropped = self._begin(launch.record)
        if await self._start(launch):
            self.post(m.Launched())
        # Only now: tidying up after the last run would compete with the start of this one.
        if ended is not None:
            self._tasks.spawn(f"forget {ended.id}", launching.forget(ended, handle, dropped, services))

    @property
    def _was_healthy(self) -> bool:
        """Whether the run before served, and its end is the first failure since."""
        return self.state.streak == 1 and self.instance is not None and self.instance.ready_at is not None

    async def _start(self, launch: launching.Launch) -> bool:
        """Whether the process runs; if not, why not was posted."""
        services = self.services

        async def record() -> None:
            services.fail("before-intent")
            self.record = await self.journal.flush(self.record, self.state)
            services.fail("after-intent")

        try:
            self.handle = await services.runtime.launch(launch.request, record)
            services.fail("after-spawn")
        except (StoreError, LaunchError, OSError) as error:
            if self.plan is not None:
                services.preparation.doubt(self.plan)
            diagnosis = launching.refusal(error)
            self.journal.note(ended_at=clock.wall(), diagnosis_json=codec.dump_diagnosis(diagnosis))
            self.post(m.PrepareFailed(diagnosis))
            return False
        self.journal.note(handle_json=codec.dump_handle(self.handle), started_at=clock.wall())
        self.watch_exit(self.handle)
        await asyncio.sleep(GIVE_WAY)
        await self._flush()
        services.fail("after-handle")
        self._tasks.spawn("record", asyncio.to_thread(launching.write_record, launch.record, self.record))
        return True

    def _begin(self, record: InstanceRecord) -> list[InstanceRecord]:
        """The new run is the present one; returns the records that are dropped for it."""
        dropped = self.journal.begin(record, keep=self.services.config.logs.attempts)
        self.handle, self.granted, self.usage, self.verdicts = None, None, None, {}
        self.held, self.device_uses, self.conditions, self.measured = "", (), {}, None
        self._drifting.clear()
        self.port = record.port
        return dropped

    def watch_exit(self, handle: Handle) -> None:
        async def watch() -> None:
            exit = await self.services.runtime.wait_exit(handle)
            await self.gather_log()
            self.on_exit(exit)

        self._tasks.spawn("exit", watch())

    def look_for(self, ask: Callable[[], Coroutine[Any, Any, None]], *, longest: float = LOOK_RETRY) -> None:
        """Find out, however long it takes to get an answer, what became of an earlier agent's instance. The pauses
        between the questions grow up to `longest` (seconds)."""

        async def look() -> None:
            pause = LOOK_RETRY
            while True:
                try:
                    await ask()
                except OSError as error:
                    problem = str(error) or "the look at it does not end"
                    log.warning("instance not found yet", deployment=self.name, error=problem)
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, longest)
                else:
                    self._sought = False
                    self.post(m.Woken())  # so that it is written and shown
                    return

        self._sought = True
        self._tasks.spawn("look", look())

    async def gather_log(self) -> None:
        """See that the log has what the present instance wrote, where it does not write there itself."""
        if self.handle is None or self.instance is None:
            return
        async with self._gathering:
            try:
                await self.services.runtime.gather_log(self.handle, launching.log_path(self.instance))
            except OSError as error:
                log.warning("log not gathered", deployment=self.name, error=str(error))

    def on_exit(self, exit: ExitStatus) -> None:
        plan, instance = self.plan, self.instance
        if plan is None or instance is None:
            return
        if exit.code is None and exit.signal is None and not exit.oom_killed:
            diagnosis = Diagnosis(DiagnosisCode.VANISHED, "the engine ended and left no exit status")
        else:
            tail = logs.tail_text(launching.log_path(instance))
            diagnosis = self.services.engine(plan.engine).diagnose(exit, tail)
        cause: Diagnosis | None = diagnosis
        if self.state.phase in {Phase.DRAINING, Phase.STOPPING, Phase.STUCK}:  # it was asked to end: because it failed?
            cause = self.state.diagnosis if self.state.goal is Goal.RETRY else None
        self.journal.note(
            ended_at=exit.at or clock.wall(),
            exit_json=codec.dump_exit(exit),
            diagnosis_json=codec.dump_diagnosis(cause),
        )
        self.post(m.Exited(exit, diagnosis))

    def _drain(self) -> None:
        async def drain() -> None:
            await (await self._prober()).drained()
            self.post(m.Drained())

        self._tasks.spawn("drain", drain())

    def _signal(self, sig: signal.Signals) -> None:
        self._tasks.cancel("drain")
        handle = self.handle
        if handle is None:
            if not self._sought:
                self.post(m.Gone())
            return

        async def kill() -> None:
            try:
                await self.services.runtime.kill(handle, sig)
            except OSError as error:  # it is sent again when the time for the stop is over
                log.warning("signal not sent", deployment=self.name, signal=sig.name, error=str(error))

        self._tasks.spawn(f"signal {sig.name}", kill())

    async def _reap(self) -> None:
        """The main process is gone; what else the instance left alive is killed, and waited for."""

        async def reap() -> None:
            pause = 0.001
            while not await self._all_gone():
                await asyncio.sleep(pause)
                pause = min(pause * 2, 0.5)
            self.post(m.Gone())

        try:
            async with asyncio.timeout(QUICK_LOOK):
                gone = await self._all_gone()
        except TimeoutError:
            gone = False
        if gone:
            self.post(m.Gone())
        else:
            self._tasks.spawn("reap", reap())

    async def _all_gone(self) -> bool:
        """Whether no process of the instance is left, and its devices' memory is back; what is left is killed."""
        handle, runtime = self.handle, self.services.runtime
        try:
            if handle is None and self._sought:
                return False
            if handle is None or not await runtime.survivors(handle):
                return await self._devices_back()
            await runtime.kill(handle, signal.SIGKILL)
        except OSError as error:  # a process hung in a driver can block the look at it: not known is not gone
            log.warning("instance not seen", deployment=self.name, error=str(error))
        return False

    async def _devices_back(self) -> bool:
        if self.plan is None or self.instance is None or not self.plan.devices:
            return True
        held = await self.services.devices.held(self.instance.id, self.plan.devices)
        if held != self.held:
            if held and not self.held:
                self.journal.event("DeviceMemoryHeld", held, Severity.WARNING)
            elif not held:
                self.journal.event("DeviceMemoryBack", "the memory of its devices is back")
            self.held = held
            self.post(m.Woken())  # so that it is written and shown
        return not held

    async def _forget(self) -> None:
        """The deployment is over: records and logs go, its history stays."""
        if self.instance is not None:
            gone = [*self.journal.older, self.instance]
            await launching.forget(self.instance, self.handle, gone, self.services)
            await asyncio.to_thread(launching.remove_compiled, self.name, self.services)

    # Probes -------------------------------------------------------------------------------------------------------

    async def _prober(self) -> Prober:
        assert self.plan is not None
        plan, port, probes, services = self.plan, self.port, self.spec.probes, self.services
        engine = services.engine(plan.engine)
        token = await asyncio.to_thread(launching.token, self.spec, engine) if self.spec.secrets else ""
        target = Target(engine, plan, probes, services.config.policy.bind, port, token)
        return Prober(
            target, post=self.post, usage=self.sample, loaded=self._loaded, granted=self._grant, measured=self._measured
        )

    async def _probe(self, *, started: bool) -> None:
        while True:
            try:
                await (await self._prober()).run(started=started)
            except Exception:
                # Without probes, status would lie and a hang would stay: whatever it was, probing goes on.
                log.exception("probing failed", deployment=self.name)
            await asyncio.sleep(PROBE_RETRY)
            started = self.state.phase is not Phase.LOADING

    def _loaded(self, done: int) -> None:
        total = self.plan.variant.bytes if self.plan else 0
        self.progress = Progress("loading", min(done, total), total)

    def _measured(self, values: Mapping[str, float]) -> None:
        self.measured = Measured(clock.wall(), values)
        self.services.changed(self.name)

    def _grant(self, granted: Granted) -> None:
        self.granted = granted
        limits = self.plan.limits if self.plan else None
        if limits and granted.max_model_len is not None and granted.max_model_len < limits.max_model_len:
            difference = f"{granted.max_model_len} tokens of context a sequence, {limits.max_model_len} planned"
            self.journal.event("LimitsDiffer", f"the engine grants {difference}", Severity.WARNING)

    def _note_verdict(self, seen: m.Probed) -> None:
        for kind in (seen.kind, *seen.also):
            last = self.verdicts.get(kind)
            failures = (last.failures if last else 0) + 1 if seen.verdict is Verdict.FAIL else 0
            self.verdicts[kind] = ProbeVerdict(kind, seen.verdict, clock.wall(), seen.detail, failures)
            if last is None or last.verdict is not seen.verdict:
                self.journal.note(probes_json=codec.dump_verdicts(self.verdicts))

    async def sample(self) -> Usage | None:
        """Resident memory and progress of the live instance, for status and for loading."""
        handle = self.handle
        try:
            self.usage = await self.services.runtime.usage(handle) if handle and self.state.phase in LIVE else None
        except OSError:
            self.usage = None
        return self.usage

    def check_devices(self) -> None:
        """Judge the engine's use of devices by its plan, from the last samples; what is bad twice in a row counts."""
        if self.plan is None or self.instance is None or self.state.phase not in SERVING:
            return
        devices, id = self.services.devices, self.instance.id
        used = {device: devices.used_by(device, id) for device in (*self.plan.devices, *devices.used_anywhere(id))}
        seen = drift.uses(self.plan, used)
        judgements = drift.judge(seen)
        bad = [judgement for judgement in judgements if judgement.status is False]
        self._drifting = Counter({judgement.reason: self._drifting[judgement.reason] + 1 for judgement in bad})
        for judgement in judgements:
            if judgement.status is not False or self._drifting[judgement.reason] >= drift.TURNS:
                self._set_condition(judgement)
        if seen != self.device_uses:
            self.device_uses = seen
            self.services.changed(self.name)
        if lost := [device for device in self.plan.devices if devices.lost(device)]:
            self.post(m.Drifted(Diagnosis(DiagnosisCode.DEVICE_FAILED, f"lost: {', '.join(lost)}")))

    def check_container(self) -> None:
        """Tell what somebody else did to the instance's container."""
        if self.handle is None or self.handle.runtime == "process" or self.state.phase not in LIVE:
            return
        self._set_condition(drift.untouched(self.services.runtime.remarks(self.handle)))
        if "gather" not in self._tasks:
            self._tasks.spawn("gather", self.gather_log())

    def _set_condition(self, judgement: drift.Judgement) -> None:
        old = self.conditions.get(judgement.type)
        changed = old is None or (old.status, old.reason) != (judgement.status, judgement.reason)
        since = clock.wall() if changed or old is None else old.since
        condition = Condition(judgement.type, judgement.status, judgement.reason, judgement.message, since)
        self.conditions[judgement.type] = condition
        if not changed or (old is None and judgement.status is not False):
            return
        severity = Severity.WARNING if judgement.status is False else Severity.INFO
        self.journal.event(judgement.reason, judgement.message, severity)
        remedy = getattr(self.services.config.policy.device_drift, judgement.kind) if judgement.kind else ""
        if judgement.status is False and remedy == "restart":
            self.post(m.Drifted(Diagnosis(DiagnosisCode.OFF_BUDGET, judgement.message)))
        else:
            self.post(m.Woken())  # so that the event is written

    async def _flush(self) -> bool:
        """Make what changed durable; if the store refuses, it is kept and tried again."""
        try:
            self.record = await self.journal.flush(self.record, self.state)
        except StoreError:
            asyncio.get_running_loop().call_later(STORE_RETRY, self.post, m.Woken())
            return False
        return True
