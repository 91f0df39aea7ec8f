-- Several generations of a vector table may be read at once; each has one open backfill.
DROP INDEX IF EXISTS walvec_control.tasks_one_open_backfill;
CREATE UNIQUE INDEX tasks_one_open_backfill ON walvec_control.tasks (target_id, generation)
    WHERE task_type IN ('backfill', 'rebackfill') AND status IN ('pending', 'running');
