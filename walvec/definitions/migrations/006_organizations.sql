-- One control database serves several organizations, each with environments of its own: ids are unique over all of them,
-- names within an environment, and one version moves with every definition.

CREATE TABLE walvec_control.installation (
    only_one    boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    version     bigint NOT NULL,
    key_check   bytea,
    keys_needed boolean NOT NULL DEFAULT false
);
COMMENT ON COLUMN walvec_control.installation.version IS 'grows with every change of a definition; its row lock puts the changes in order';
COMMENT ON COLUMN walvec_control.installation.keys_needed IS 'there was a full API key: since then nobody asks without one';
COMMENT ON COLUMN walvec_control.installation.key_check IS 'a known text, encrypted: tells a wrong secret key at once';

CREATE TABLE walvec_control.organizations (
    id         text PRIMARY KEY,
    name       text NOT NULL,
    status     text NOT NULL DEFAULT 'active',
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT organizations_name UNIQUE (name)
);

CREATE TABLE walvec_control.api_keys (
    id         text PRIMARY KEY,
    org_id     text NOT NULL REFERENCES walvec_control.organizations ON DELETE CASCADE,
    name       text NOT NULL,
    digest     bytea NOT NULL,
    prefix     text NOT NULL,
    permission text NOT NULL,
    created_by text,
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz,
    CONSTRAINT api_keys_digest UNIQUE (digest)
);
COMMENT ON COLUMN walvec_control.api_keys.digest IS 'SHA-256: the key itself is shown once and kept nowhere';

INSERT INTO walvec_control.organizations (id, name)
    SELECT 'org_' || substr(replace(gen_random_uuid()::text, '-', ''), 1, 16), 'default';

INSERT INTO walvec_control.installation (version, key_check)
    SELECT coalesce(max(version) + 1, 0),  -- the first environment makes it 1
           (SELECT key_check FROM walvec_control.environments ORDER BY environment <> 'prod', created_at LIMIT 1)
    FROM walvec_control.environments;

-- children first: what refers to (environment, id) lets go of it
ALTER TABLE walvec_control.vector_tables DROP CONSTRAINT vector_tables_connection, DROP CONSTRAINT vector_tables_provider;
ALTER TABLE walvec_control.tasks DROP CONSTRAINT tasks_target;
ALTER TABLE walvec_control.dead_letters DROP CONSTRAINT dead_letters_table;
ALTER TABLE walvec_control.progress DROP CONSTRAINT progress_connection;
ALTER TABLE walvec_control.published DROP CONSTRAINT published_connection;
ALTER TABLE walvec_control.topics DROP CONSTRAINT topics_table;
ALTER TABLE walvec_control.bridges DROP CONSTRAINT bridges_table;
ALTER TABLE walvec_control.bridge_snapshots DROP CONSTRAINT bridge_snapshots_table;

ALTER TABLE walvec_control.environments RENAME TO former_environments;
ALTER TABLE walvec_control.former_environments RENAME CONSTRAINT environments_pkey TO former_environments_pkey;
CREATE TABLE walvec_control.environments (
    id          text PRIMARY KEY,
    org_id      text NOT NULL REFERENCES walvec_control.organizations ON DELETE CASCADE,
    name        text NOT NULL,
    view_schema text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT environments_name UNIQUE (org_id, name),
    CONSTRAINT environments_view_schema UNIQUE (view_schema)
);
COMMENT ON COLUMN walvec_control.environments.view_schema IS 'schema of its storages and views in a store''s database';
INSERT INTO walvec_control.environments (id, org_id, name, view_schema, created_at)
    SELECT 'env_' || substr(replace(gen_random_uuid()::text, '-', ''), 1, 16), o.id, f.environment,
           CASE f.environment WHEN 'prod' THEN 'walvec' ELSE 'walvec_' || f.environment END, f.created_at
    FROM walvec_control.former_environments f, walvec_control.organizations o;

ALTER TABLE walvec_control.connections ADD COLUMN environment_id text;
UPDATE walvec_control.connections c SET environment_id = e.id FROM walvec_control.environments e WHERE e.name = c.environment;
ALTER TABLE walvec_control.connections DROP COLUMN environment;
ALTER TABLE walvec_control.connections
    ALTER COLUMN environment_id SET NOT NULL,
    ADD PRIMARY KEY (id),
    ADD CONSTRAINT connections_environment FOREIGN KEY (environment_id) REFERENCES walvec_control.environments,
    ADD CONSTRAINT connections_name UNIQUE (environment_id, name),
    ADD CONSTRAINT connections_own UNIQUE (environment_id, id);

ALTER TABLE walvec_control.providers ADD COLUMN environment_id text;
UPDATE walvec_control.providers p SET environment_id = e.id FROM walvec_control.environments e WHERE e.name = p.environment;
ALTER TABLE walvec_control.providers DROP COLUMN environment;
ALTER TABLE walvec_control.providers
    ALTER COLUMN environment_id SET NOT NULL,
    ADD PRIMARY KEY (id),
    ADD CONSTRAINT providers_environment FOREIGN KEY (environment_id) REFERENCES walvec_control.environments,
    ADD CONSTRAINT providers_name UNIQUE (environment_id, name),
    ADD CONSTRAINT providers_own UNIQUE (environment_id, id);

ALTER TABLE walvec_control.vector_tables ADD COLUMN environment_id text;
UPDATE walvec_control.vector_tables t SET environment_id = e.id FROM walvec_control.environments e WHERE e.name = t.environment;
ALTER TABLE walvec_control.vector_tables DROP COLUMN environment;
ALTER TABLE walvec_control.vector_tables
    ALTER COLUMN environment_id SET NOT NULL,
    ADD PRIMARY KEY (id),
    ADD CONSTRAINT vector_tables_environment FOREIGN KEY (environment_id) REFERENCES walvec_control.environments,
    ADD CONSTRAINT vector_tables_name UNIQUE (environment_id, name),
    -- with the environment: a vector table never uses what belongs to another one
    ADD CONSTRAINT vector_tables_connection FOREIGN KEY (environment_id, connection_id)
        REFERENCES walvec_control.connections (environment_id, id),
    ADD CONSTRAINT vector_tables_provider FOREIGN KEY (environment_id, embedding_provider_id)
        REFERENCES walvec_control.providers (environment_id, id);
CREATE INDEX vector_tables_by_connection ON walvec_control.vector_tables (connection_id);
CREATE INDEX vector_tables_by_provider ON walvec_control.vector_tables (embedding_provider_id);

ALTER TABLE walvec_control.tasks DROP COLUMN environment;
ALTER TABLE walvec_control.tasks
    ADD PRIMARY KEY (id),
    ADD CONSTRAINT tasks_target FOREIGN KEY (target_id) REFERENCES walvec_control.vector_tables ON DELETE CASCADE;
CREATE UNIQUE INDEX tasks_one_open_backfill ON walvec_control.tasks (target_id)
    WHERE task_type IN ('backfill', 'rebackfill') AND status IN ('pending', 'running');
CREATE INDEX tasks_open ON walvec_control.tasks (target_id, sequence) WHERE status IN ('pending', 'running');
CREATE INDEX tasks_recent ON walvec_control.tasks (target_id, sequence DESC);

ALTER TABLE walvec_control.dead_letters DROP COLUMN environment;
ALTER TABLE walvec_control.dead_letters
    ADD CONSTRAINT dead_letters_one_open UNIQUE (vector_table_id, generation, key_id),
    ADD CONSTRAINT dead_letters_table FOREIGN KEY (vector_table_id) REFERENCES walvec_control.vector_tables ON DELETE CASCADE;
CREATE INDEX dead_letters_page ON walvec_control.dead_letters (vector_table_id, id);

ALTER TABLE walvec_control.progress DROP COLUMN environment;
ALTER TABLE walvec_control.progress
    ADD PRIMARY KEY (connection_id),
    ADD CONSTRAINT progress_connection FOREIGN KEY (connection_id) REFERENCES walvec_control.connections ON DELETE CASCADE;

ALTER TABLE walvec_control.published DROP COLUMN environment;
ALTER TABLE walvec_control.published
    ADD PRIMARY KEY (connection_id),
    ADD CONSTRAINT published_connection FOREIGN KEY (connection_id) REFERENCES walvec_control.connections ON DELETE CASCADE;

ALTER TABLE walvec_control.topics DROP COLUMN environment;
ALTER TABLE walvec_control.topics
    ADD PRIMARY KEY (vector_table_id, topic),
    ADD CONSTRAINT topics_table FOREIGN KEY (vector_table_id) REFERENCES walvec_control.vector_tables ON DELETE CASCADE;

ALTER TABLE walvec_control.bridges DROP COLUMN environment;
ALTER TABLE walvec_control.bridges
    ADD PRIMARY KEY (vector_table_id, partition),
    ADD CONSTRAINT bridges_table FOREIGN KEY (vector_table_id) REFERENCES walvec_control.vector_tables ON DELETE CASCADE;

ALTER TABLE walvec_control.bridge_snapshots DROP COLUMN environment;
ALTER TABLE walvec_control.bridge_snapshots
    ADD PRIMARY KEY (vector_table_id, partition, start_offset),
    ADD CONSTRAINT bridge_snapshots_table FOREIGN KEY (vector_table_id)
        REFERENCES walvec_control.vector_tables ON DELETE CASCADE;

-- reports are made anew within seconds
DELETE FROM walvec_control.reports;
ALTER TABLE walvec_control.reports DROP COLUMN environment;
ALTER TABLE walvec_control.reports ADD PRIMARY KEY (role, subject, instance);

DROP TABLE walvec_control.former_environments;
