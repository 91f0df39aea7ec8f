-- Several processes of a role tell of one subject: each has a row of its own. Reports are made anew within seconds.
DELETE FROM walvec_control.reports;
ALTER TABLE walvec_control.reports ADD COLUMN instance text NOT NULL DEFAULT '';
ALTER TABLE walvec_control.reports DROP CONSTRAINT reports_pkey;
ALTER TABLE walvec_control.reports ADD PRIMARY KEY (environment, role, subject, instance);
