-- What each connection's publication was when its tables were last seen published: vector table id -> mark.
CREATE TABLE walvec_control.published (
    environment   text NOT NULL REFERENCES walvec_control.environments,
    connection_id text NOT NULL,
    marks         jsonb NOT NULL,
    PRIMARY KEY (environment, connection_id),
    CONSTRAINT published_connection FOREIGN KEY (environment, connection_id)
        REFERENCES walvec_control.connections (environment, id) ON DELETE CASCADE
);
