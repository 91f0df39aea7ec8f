-- Vector tables behind an existing Debezium: how far its topic was read, and which snapshots each partition holds.
-- partition -1 = the whole topic
CREATE TABLE walvec_control.bridges (
    environment     text NOT NULL,
    vector_table_id text NOT NULL,
    partition       integer NOT NULL,
    start_offset    bigint NOT NULL,
    sequence        bigint NOT NULL,
    PRIMARY KEY (environment, vector_table_id, partition),
    CONSTRAINT bridges_table FOREIGN KEY (environment, vector_table_id)
        REFERENCES walvec_control.vector_tables (environment, id) ON DELETE CASCADE
) WITH (fillfactor = 50);
COMMENT ON COLUMN walvec_control.bridges.sequence IS 'highest last commit that a streamed change named';

CREATE TABLE walvec_control.bridge_snapshots (
    environment     text NOT NULL,
    vector_table_id text NOT NULL,
    partition       integer NOT NULL,
    start_offset    bigint NOT NULL,
    lsn             bigint NOT NULL,
    PRIMARY KEY (environment, vector_table_id, partition, start_offset),
    CONSTRAINT bridge_snapshots_table FOREIGN KEY (environment, vector_table_id)
        REFERENCES walvec_control.vector_tables (environment, id) ON DELETE CASCADE
);
