-- Which topics the records of a vector table went to: another identity than the one kept here means that the topic was
-- deleted, and what was in it is lost.
CREATE TABLE walvec_control.topics (
    environment     text NOT NULL REFERENCES walvec_control.environments,
    vector_table_id text NOT NULL,
    topic           text NOT NULL,
    identity        text NOT NULL,
    PRIMARY KEY (environment, vector_table_id, topic),
    CONSTRAINT topics_table FOREIGN KEY (environment, vector_table_id)
        REFERENCES walvec_control.vector_tables (environment, id) ON DELETE CASCADE
);
