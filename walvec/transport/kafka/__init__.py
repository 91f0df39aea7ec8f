"""The log on Apache Kafka: `log` puts it together behind the port.

`client` knows the configuration and turns Kafka's errors into ours, `admin` makes and describes topics, `producer`
appends, `consumer` is a member of a group (both over librdkafka), `reading` reads without a group (over aiokafka, which
needs no thread). A consumer's thread is `fetcher`, with `rebalances` and `commits`; both sides share `membership`.
Why which client where: docs/adr/0004-kafka-clients.md.

Law: a record counts as durable only by the brokers' acknowledgement; topics are made by `ensure_topic` and by nothing
else; no secret reaches a log line or an error.
"""

from walvec.transport.kafka.log import KafkaLog, open_kafka_log

__all__ = ["KafkaLog", "open_kafka_log"]
