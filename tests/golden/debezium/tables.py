"""Tables and workloads of the recorder."""

DOCS = """
CREATE TABLE docs (id int PRIMARY KEY, title text, body text, price numeric(10,2));
ALTER TABLE docs ALTER body SET STORAGE EXTERNAL;
INSERT INTO docs VALUES (1, 'one', 'first body', 1.50);
INSERT INTO docs VALUES (2, 'two', repeat('toast ', 500), 2);
INSERT INTO docs VALUES (3, 'ü "quoted" \\ 日本', NULL, NULL);
"""

# Insert, update, an unchanged large text, delete, a changed key (also of a row with a large text), two keys swapped
# in one transaction, several changes of one row in a transaction, a rolled back one, truncate, and a row after it.
WORKLOAD = """
INSERT INTO docs VALUES (4, 'four', repeat('large ', 500), 4);
UPDATE docs SET title = 'one, changed' WHERE id = 1;
UPDATE docs SET title = 'two, text unchanged' WHERE id = 2;
UPDATE docs SET body = NULL WHERE id = 4;
UPDATE docs SET body = repeat('larger ', 500) WHERE id = 4;
DELETE FROM docs WHERE id = 3;
UPDATE docs SET id = 5 WHERE id = 1;
UPDATE docs SET id = 6 WHERE id = 2;
BEGIN;
UPDATE docs SET id = 0 WHERE id = 5;
UPDATE docs SET id = 5 WHERE id = 6;
UPDATE docs SET id = 6 WHERE id = 0;
COMMIT;
BEGIN;
INSERT INTO docs VALUES (7, 'seven', 'x', 7);
UPDATE docs SET title = 'seven, changed' WHERE id = 7;
DELETE FROM docs WHERE id = 7;
INSERT INTO docs VALUES (7, 'seven, again', 'y', 7);
COMMIT;
BEGIN;
INSERT INTO docs VALUES (8, 'never', 'x', 8);
ROLLBACK;
UPDATE docs SET title = title WHERE id = 7;
TRUNCATE docs;
INSERT INTO docs VALUES (9, 'nine', 'after the truncate', 9);
INSERT INTO docs VALUES (10, 'ten', repeat('kept ', 600), 10);
UPDATE docs SET price = 11 WHERE id = 10
"""

KEYS_TABLES = (
    "public.composite",
    "public.strings",
    "public.uuids",
    "public.decimals",
    "public.instants",
    "public.bytes",
    "public.unique_index",
)
KEYS = """
CREATE TYPE kind AS ENUM ('draft', 'it''s "done"');
CREATE TABLE composite (tenant bigint, name text, kind kind, title text, PRIMARY KEY (name, tenant, kind));
INSERT INTO composite VALUES (9223372036854775807, 'a "b"', 'draft', 'snapshot');
CREATE TABLE strings (id text PRIMARY KEY, title text);
INSERT INTO strings VALUES ('', 'empty'), ('a"b\\c', 'quotes'), ('ключ 日本 \U0001f600', 'unicode'),
    (e'tab\\tnew\\nline', 'control');
CREATE TABLE uuids (id uuid PRIMARY KEY, title text);
INSERT INTO uuids VALUES ('6f1c2b0a-0000-4000-8000-00000000abcd', 'snapshot');
CREATE TABLE decimals (id numeric PRIMARY KEY, title text);
INSERT INTO decimals VALUES (1.10, 'snapshot'), (-12345678901234567890.5, 'large');
CREATE TABLE instants (id timestamptz, day date, title text, PRIMARY KEY (id, day));
INSERT INTO instants VALUES ('2024-02-29 12:34:56.789123+02', '2024-02-29', 'snapshot');
CREATE TABLE bytes (id bytea PRIMARY KEY, title text);
INSERT INTO bytes VALUES ('\\x00ff10', 'snapshot');
CREATE TABLE unique_index (id int NOT NULL, code text NOT NULL, title text);
CREATE UNIQUE INDEX by_code ON unique_index (code);
ALTER TABLE unique_index REPLICA IDENTITY USING INDEX by_code;
INSERT INTO unique_index VALUES (1, 'c1', 'snapshot');
"""
KEYS_STREAMED = """
INSERT INTO composite VALUES (2, 'Ünïcode', 'it''s "done"', 'streamed');
UPDATE composite SET title = 'changed' WHERE tenant = 2;
UPDATE composite SET tenant = 3 WHERE tenant = 2;
DELETE FROM composite WHERE tenant = 9223372036854775807;
UPDATE strings SET title = title || '!';
UPDATE strings SET id = id || '''moved' WHERE title = 'unicode!';
DELETE FROM strings WHERE id = '';
UPDATE uuids SET title = 'changed';
UPDATE decimals SET title = title || '!';
INSERT INTO decimals VALUES (1e10, 'streamed'), (0.000001, 'small');
UPDATE instants SET title = 'changed';
INSERT INTO instants VALUES ('infinity', '0044-03-15 BC', 'odd');
UPDATE bytes SET title = 'changed';
UPDATE unique_index SET title = 'changed';
UPDATE unique_index SET id = 2;
UPDATE unique_index SET code = 'c2';
DELETE FROM unique_index
"""

TYPES_TABLES = ("public.types",)
TYPES = """
CREATE TYPE mood AS ENUM ('sad', 'ok "so"');
CREATE DOMAIN short AS varchar(20);
CREATE DOMAIN amount AS numeric(12,3);
CREATE TYPE pair AS (x int, y text);
CREATE TABLE types (
    id int PRIMARY KEY,
    small smallint, big bigint, flag boolean,
    single real, double double precision,
    exact numeric(12,3), whole numeric(20,0), any_numeric numeric, amount amount, cash money,
    chars char(6), vchars varchar(20), words text, short short, name_ name, one "char",
    raw bytea, bits bit(3), varbits bit varying(10), onebit bit(1),
    u uuid, j json, jb jsonb,
    d date, t time, t0 time(0), ttz timetz, ts timestamp, ts0 timestamp(0), ts3 timestamp(3),
    tstz timestamptz, iv interval,
    m mood,
    ip inet, net cidr, mac macaddr,
    ints int[], texts text[], nums numeric(6,2)[], moods mood[], uuids uuid[], matrix int[], stamps timestamptz[],
    r int4range, tsr tstzrange, p point, oid_ oid, tsv tsvector, v vector(3), pr pair
);
INSERT INTO types VALUES (
    1, -32768, 9223372036854775807, true,
    1.1, 0.1, 123456789.123, 12345678901234567890, 3.14159265358979323846264338, 1.500, 12.34,
    'ab', 'vc', 'words', 'dom', 'name', 'c',
    '\\x00ff10', B'101', B'0101', B'1',
    '6f1c2b0a-0000-4000-8000-00000000abcd', '{"b": 1,  "a": [1.10, null]}', '{"b": 1, "a": [1.10, null]}',
    '2024-02-29', '12:34:56.789123', '12:34:56', '12:34:56.5+02', '2024-02-29 12:34:56.789123', '2024-02-29 12:34:56',
    '2024-02-29 12:34:56.789', '2024-02-29 12:34:56.789123+02', '1 year 2 mons 3 days 04:05:06.5',
    'ok "so"',
    '192.168.0.1/24', '10.0.0.0/8', '08:00:2b:01:02:03',
    '{1,NULL,3}', '{a,"b, c",NULL,"d\\"e"}', '{1.10,2}',
    '{sad}', '{6f1c2b0a-0000-4000-8000-00000000abcd}', '{{1,2},{3,4}}',
    '{2024-02-29 12:34:56.789123+02}',
    '[1,5)', '[2024-01-01 00:00+00,)', '(1.5,2)', 4294967295, 'fat:2 cat:3', '[1,2.5,3]', '(1,x)'
);
INSERT INTO types (id) VALUES (2);
INSERT INTO types (id, single, double, exact, any_numeric, d, ts, tstz, t, raw, words, iv, ints, texts, j) VALUES (
    3, 'NaN', '-Infinity', -0.001, -0.00000000010, '0044-03-15 BC', '0044-03-15 12:00 BC',
    '1969-12-31 23:59:59.999999+00', '24:00', '', e'\\t\\n "\\u00e9\\U0001f600',
    '-1 mons -00:00:00.000001', '{}', '{}', 'null'
);
INSERT INTO types (id, single, double, d, ts, tstz) VALUES (4, 'Infinity', 1e-300, 'infinity', 'infinity', '-infinity');
INSERT INTO types (id, any_numeric) VALUES (5, 'NaN');
"""
# The same values through the write-ahead log: the snapshot reads them by another way.
TYPES_STREAMED = """
CREATE TEMP TABLE again AS SELECT * FROM types;
UPDATE again SET id = id + 10;
INSERT INTO types SELECT * FROM again ORDER BY id;
UPDATE types SET words = 'changed' WHERE id = 11;
DELETE FROM types WHERE id = 13
"""

CONTRIB_TABLES = ("public.contrib",)
CONTRIB = """
CREATE EXTENSION hstore;
CREATE EXTENSION citext;
CREATE EXTENSION ltree;
CREATE TABLE contrib (id citext PRIMARY KEY, hs hstore, ci citext, lt ltree, x xml);
INSERT INTO contrib VALUES ('Snapshot', 'a=>1, b=>NULL, "c d"=>"e\\"f"', 'CiText', 'top.science', '<a>b</a>');
INSERT INTO contrib VALUES ('empty', '', '', '');
INSERT INTO contrib VALUES ('nulls');
"""
CONTRIB_STREAMED = """
INSERT INTO contrib SELECT id || '!', hs, ci, lt, x FROM contrib ORDER BY id
"""

NO_KEY = """
CREATE TABLE docs (id int, title text);
ALTER TABLE docs REPLICA IDENTITY FULL;
INSERT INTO docs VALUES (1, 'snapshot');
"""
NO_KEY_STREAMED = """
INSERT INTO docs VALUES (2, 'streamed');
UPDATE docs SET title = 'changed' WHERE id = 2;
DELETE FROM docs WHERE id = 1
"""

SCHEMA_CHANGE = """
UPDATE docs SET title = 'before' WHERE id = 1;
ALTER TABLE docs ADD COLUMN extra text DEFAULT 'given';
UPDATE docs SET title = 'added' WHERE id = 1;
ALTER TABLE docs RENAME COLUMN extra TO more;
UPDATE docs SET title = 'renamed' WHERE id = 1;
ALTER TABLE docs ALTER COLUMN price TYPE text;
UPDATE docs SET title = 'retyped' WHERE id = 1;
ALTER TABLE docs DROP COLUMN more;
UPDATE docs SET title = 'dropped' WHERE id = 1
"""

PARTITIONED = """
CREATE TABLE docs (id int, region text, title text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE docs_eu PARTITION OF docs FOR VALUES IN ('eu');
CREATE TABLE docs_us PARTITION OF docs FOR VALUES IN ('us');
INSERT INTO docs VALUES (1, 'eu', 'one');
"""
PARTITIONED_STREAMED = """
INSERT INTO docs VALUES (2, 'us', 'two');
UPDATE docs SET region = 'eu' WHERE id = 2;
UPDATE docs SET title = 'changed' WHERE id = 1;
DELETE FROM docs WHERE id = 1;
TRUNCATE docs_us
"""
