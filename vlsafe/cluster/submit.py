"""From a plan to jobs: one for each task that must run and isn't queued, parents first, and one that the sweep ends with."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlsafe.cells import RunSettings
from vlsafe.cluster import slurm
from vlsafe.cluster.jobs import JobBook, JobRecord, Submission, finish_name, load_submission, work
from vlsafe.cluster.script import Job, Shape, job_script
from vlsafe.cluster.settings import FINISH, WHERE, SlurmSettings, group_of, one_line, slurm_settings
from vlsafe.cluster.slurm import Partition, SlurmError
from vlsafe.errors import ConfigError
from vlsafe.execute.resources import Needs, check_training, execution_of, needs, one_process, together
from vlsafe.execute.task import Task, group_stages, order_of
from vlsafe.files import write_atomic
from vlsafe.plan import Plan
from vlsafe.settings import build
from vlsafe.store import Store
from vlsafe.sweep import Sweep


def partition_of(settings: SlurmSettings, kind: str, partitions: Mapping[str, Partition]) -> Partition:
    """Where a kind of stage goes; raises `ConfigError` for a partition that the site doesn't have."""
    name = settings.of(kind).partition
    if name is None:
        return next((p for p in partitions.values() if p.default), Partition("", True, 0, 0, 0))
    for one in (parts := name.split(",")):
        if one not in partitions:
            where = settings.source(kind, "partition")
            raise ConfigError(f"{where}={name}: no such partition; there are: {', '.join(sorted(partitions))}")
    return partitions[parts[0]]


@dataclass
class Wave:
    """What one round of submitting came to."""

    queued: list[JobRecord] = field(default_factory=list)
    shared: list[JobRecord] = field(default_factory=list)  # queued before, by this or another sweep
    left: list[tuple[str, ...]] = field(default_factory=list)  # groups of stages that the limit left no room for
    finish: JobRecord | None = None
    new_finish: JobRecord | None = None  # where this round queued it
    old_finish: JobRecord | None = None  # that waited, and is replaced

    @property
    def ids(self) -> list[str]:
        return [r.job for r in (*self.queued, *self.shared) if r.job is not None]


@dataclass
class Submitter:
    sweep: Sweep
    plan: Plan
    store: Store
    submission: Submission
    book: JobBook
    partitions: Mapping[str, Partition]
    own: str | None = None  # the id of the job that this is, where a finish job submits the next wave

    def __post_init__(self) -> None:
        self.settings: SlurmSettings = slurm_settings(self.submission.settings)
        self.run: RunSettings = build(RunSettings, self.submission.run, "")

    # Resources

    def needs(self, group: Sequence[str]) -> tuple[Needs, Shape]:
        """Of a task: the same words as on one machine, for a machine of its partition."""
        kind = self.plan.stages[group[0]].kind
        resources, partition = self.settings.of(kind), partition_of(self.settings, kind, self.partitions)
        run = dataclasses.replace(self.run, num_nodes=resources.nodes or self.run.num_nodes)
        gpus = partition.gpus if resources.gpus_per_node is None else resources.gpus_per_node
        deepspeed = self.submission.deepspeed is not None
        all_of = together(needs(self.plan.stages[id], run, deepspeed, gpus, partition.cpus or 1) for id in group)
        cpus = resources.cpus_per_task or all_of.threads
        nodes = 1 if one_process(self.plan.stages[group[0]]) else resources.nodes or all_of.nodes
        if all_of.processes % nodes:
            raise ConfigError(f"num_processes={all_of.processes}: must divide over {nodes} nodes")
        shape = Shape(
            nodes, all_of.processes // nodes, cpus, all_of.gpus if resources.gpus_per_node is None else resources.gpus_per_node
        )
        for what, asked, there in (
            ("nodes", nodes, partition.nodes), ("cpus_per_task", cpus * shape.processes, partition.cpus),
            ("gpus_per_node", shape.gpus, partition.gpus),
        ):  # fmt: skip
            if partition.name and asked > there:
                raise ConfigError(
                    f"{self.settings.source(kind, what)}: a {kind} stage needs {asked} {what.split('_')[0]}"
                    f"{'' if what == 'nodes' else ' on a node'}, and partition {partition.name} has {there}: set less, or "
                    f"{WHERE}.resources.{group_of(kind)}.partition, from: {', '.join(sorted(self.partitions))}"
                )
        return dataclasses.replace(all_of, threads=min(all_of.threads, cpus)), shape

    # Submitting

    def check(self, to_run: Collection[str]) -> None:
        """Everything that can be known before the first job is in the queue."""
        one_line(str(self.sweep.folder), "outputs")
        for group in group_stages(self.plan, to_run):
            wanted, _ = self.needs(group)
            for id in group:
                check_training(self.plan.stages[id], wanted, self.run, self.submission.deepspeed)

    def wave(self, to_run: Collection[str], tried: Collection[str] = ()) -> Wave:
        """Submits what isn't queued. `tried` stages have had a job. What it queued is cancelled where the site refuses."""
        wave, before = Wave(), load_submission(self.sweep.folder)
        try:
            self._wave(wave, to_run, tried)
        except BaseException:
            self._take_back(wave, before)
            raise
        return wave

    def _take_back(self, wave: Wave, before: Submission | None) -> None:
        """Cancels what this round queued, the finish job first: behind the others' ends it would begin at once. What the sweep
        has with Slurm is then what it had `before`."""
        new = [r for r in (wave.new_finish, *wave.queued) if r is not None]
        slurm.cancel([r.job for r in new if r.job is not None])
        for record in new:
            self.book.drop(record)
        if wave.old_finish is not None:
            self.book.write(wave.old_finish)
        if before is None:
            (work(self.sweep.folder) / "sweep.json").unlink(missing_ok=True)
        else:
            before.save(self.sweep.folder)

    def _wave(self, wave: Wave, to_run: Collection[str], tried: Collection[str]) -> None:
        left: set[str] = set()
        full = False
        for group in group_stages(self.plan, [id for id in to_run if id not in tried]):
            at = self.book.of_stages()
            for record in {at[id].name: at[id] for id in group if id in at}.values():
                self._share(record, wave)
            missing = tuple(id for id in group if id not in at)
            if not missing:
                continue
            parents = {p for id in missing for p in self.plan.stages[id].parents.values()} - set(missing)
            if full or parents & left or self._room(wave) < 1:
                left |= set(missing)
                wave.left.append(missing)
                continue
            try:
                self._submit(missing, parents, at, wave)
            except SlurmError as error:
                if not error.is_limit or not (wave.queued or wave.shared):
                    raise
                full = True
                left |= set(missing)
                wave.left.append(missing)
        if wave.left and not wave.ids:
            there = len(self.book.mine)
            raise SlurmError(
                f"{WHERE}.max_submitted={self.settings.max_submitted}: {there} jobs of yours are in the queue, which leaves no "
                "room for one and the job that ends a sweep: wait until some have ended, then give the same command again"
            )
        self._submit_finish(wave)

    def _room(self, wave: Wave) -> float:
        """For further jobs, one kept for the finish job."""
        most = self.settings.max_submitted
        return float("inf") if most is None else most - len(self.book.mine) - len(wave.queued) - 1

    def _share(self, record: JobRecord, wave: Wave) -> None:
        self.submission.tasks[record.name] = self.book.want(record, self.sweep.folder)
        if record not in wave.queued and record.name not in {r.name for r in wave.shared}:
            wave.shared.append(record)

    def _submit(self, group: tuple[str, ...], parents: Collection[str], at: Mapping[str, JobRecord], wave: Wave) -> None:
        stages = [self.plan.stages[id] for id in group]
        trainings = tuple(dict.fromkeys(f"{s.kind}/{s.training_key}" for s in stages))
        # A job that takes other snapshots of the same training is waited for too: both would hold one lease.
        # However it ends: another sweep's may be cancelled or fail, and this one is none the worse for it.
        same = {r.job for r in self.book.live_records() if set(r.trainings) & set(trainings)}
        after = {at[p].job for p in parents if p in at}
        waits = [
            f"{how}:{':'.join(sorted((id for id in ids if id), key=int))}"
            for how, ids in (("afterok", after), ("afterany", same - after))
            if ids - {None}
        ]
        named = stages[-1] if stages[0].step is not None else stages[0]
        name = f"{named.kind}-{named.key}"
        folder = work(self.sweep.folder)
        record = JobRecord(
            name, group, trainings, events=str(folder / f"{name}.events.jsonl"), journal=str(folder / f"{name}.job.jsonl"),
            log=str(self.sweep.folder / "logs" / f"{name}.log"), sweeps=(str(self.sweep.folder),),
        )  # fmt: skip
        wanted, shape = self.needs(group)
        execution = execution_of(wanted, self.run, self.submission.deepspeed)
        task = Task(name, tuple(map(order_of, stages)), str(self.store.root), execution, record.events, record.log)
        path = folder / f"{name}.task.json"
        task.save(path)
        Path(record.events).unlink(missing_ok=True)  # of an earlier job of this task, which has ended
        title = f"Sweep {self.sweep.name}: {stages[-1].label if stages[0].kind != 'generate' else 'evaluation of ' + name}"
        job = Job(
            f"vlsafe-{name}", title, ("vlsafe.execute.worker", str(path)), (self.book.path(name), path), self.store.root,
            Path(record.log), Path(record.journal),
        )  # fmt: skip
        options = [f"--dependency={','.join(waits)}"] if waits else []
        wave.queued.append(self._queue(record, job, shape, named.kind, [*options, "--kill-on-invalid-dep=yes"]))
        self.submission.tasks[name] = wave.queued[-1]
        self.submission.save(self.sweep.folder)

    def _submit_finish(self, wave: Wave) -> None:
        """One job behind all others. One that waits already is replaced where there is something new to wait for."""
        before = self.book.records.get(finish_name(self.sweep.folder))
        waiting = before is not None and self.book.live(before) and before.job != self.own
        if waiting and not wave.queued and before is not None:
            wave.finish = self.submission.finish = before
            self.submission.save(self.sweep.folder)
            return
        if not wave.ids:
            return
        wave.old_finish = before if waiting else None
        folder = work(self.sweep.folder)
        name = finish_name(self.sweep.folder)
        record = JobRecord(
            name, (), (), events=str(folder / "finish.events.jsonl"), journal=str(folder / "finish.job.jsonl"),
            log=str(self.sweep.folder / "logs" / "finish.log"), sweeps=(str(self.sweep.folder),),
        )  # fmt: skip
        job = Job(
            f"vlsafe-finish-{self.sweep.name}", f"Sweep {self.sweep.name}: writes its results when all other jobs have ended",
            ("vlsafe.cluster.finish", str(self.sweep.folder)), (self.book.path(name), folder / "sweep.json"), self.store.root,
            Path(record.log), Path(record.journal), stop=False,
        )  # fmt: skip
        self.submission.save(self.sweep.folder)
        resources = self.settings.of(FINISH)
        shape = Shape(1, 1, resources.cpus_per_task or 1, resources.gpus_per_node or 0)
        dependency = [f"--dependency=afterany:{':'.join(sorted(wave.ids, key=int))}"]
        while True:
            try:
                wave.finish = wave.new_finish = self._queue(record, job, shape, FINISH, dependency)
                break
            except SlurmError as error:
                if not error.is_limit or len(wave.queued) < 2:
                    raise
                self._give_back(wave)  # its place is needed
                dependency = [f"--dependency=afterany:{':'.join(sorted(wave.ids, key=int))}"]
        self.submission.finish = wave.finish
        self.submission.save(self.sweep.folder)
        if waiting and before is not None and before.job is not None:
            with contextlib.suppress(SlurmError):  # it would write what there is, and the new one all
                slurm.cancel([before.job])

    def _give_back(self, wave: Wave) -> None:
        """The last job that was queued: nothing depends on it."""
        last = wave.queued.pop()
        slurm.cancel([last.job] if last.job else [])
        self.book.drop(last)
        self.submission.tasks.pop(last.name, None)
        wave.left.append(last.stages)

    def _queue(self, record: JobRecord, job: Job, shape: Shape, kind: str, options: Sequence[str]) -> JobRecord:
        resources = self.settings.of(kind)
        script = work(self.sweep.folder) / f"{record.name}.sh"
        python = self.settings.python or sys.executable
        write_atomic(script, job_script(job, shape, resources, self.settings, python))
        Path(record.log).parent.mkdir(parents=True, exist_ok=True)
        draft = self.book.draft(record)
        try:
            id = slurm.sbatch(script, f"--comment={draft.token}", *options)
        except SlurmError as error:
            self.book.drop(draft)
            if error.is_limit:
                raise SlurmError(
                    f"the site takes no more jobs of yours ({error.said}): wait until some have ended, then give the same "
                    f"command again, or set {WHERE}.max_submitted",
                    error.said,
                ) from error
            raise SlurmError(
                f"{error} (asked for {shown(resources.partition, job_options(script))}): set {WHERE}.resources."
                f"{group_of(kind)} otherwise; partitions here: {', '.join(sorted(self.partitions))}; no job of this command is "
                "left in the queue",
                error.said,
            ) from error
        return self.book.submitted(draft, id)


def job_options(script: Path) -> list[str]:
    skip = ("--job-name", "--output", "--open-mode", "--signal", "--requeue", "--no-requeue")
    lines = script.read_text().splitlines()
    return [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ") and not line[8:].startswith(skip)]


def shown(partition: str | None, options: Sequence[str]) -> str:
    return " ".join(options) if partition else "the default partition, " + " ".join(options)
