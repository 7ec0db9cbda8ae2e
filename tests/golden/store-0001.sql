BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL,
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE boots (
	device_id VARCHAR NOT NULL,
	boot_id BLOB NOT NULL,
	samples_seen BIGINT NOT NULL,
	last_seen_ms BIGINT NOT NULL,
	PRIMARY KEY (device_id, boot_id)
);
INSERT INTO "boots" VALUES('gate-1',X'62626262626262626262626262626262',70,20);
CREATE TABLE devices (
	device_id VARCHAR NOT NULL,
	group_name VARCHAR NOT NULL,
	token_sha256 VARCHAR NOT NULL,
	created_ms BIGINT NOT NULL,
	revoked_ms BIGINT,
	last_seen_ms BIGINT NOT NULL,
	samples_seen BIGINT NOT NULL,
	dropped JSON NOT NULL,
	PRIMARY KEY (device_id),
	FOREIGN KEY(group_name) REFERENCES groups (name),
	UNIQUE (token_sha256)
);
INSERT INTO "devices" VALUES('gate-1','doors','d509c804b64294740d6ffbcb8e6287b2db5de9789ebf47d0b29511b15c5bec79',10,NULL,20,70,'{"outbox_full": 2}');
INSERT INTO "devices" VALUES('gate-2','doors','2696421d522fd2f21725360652e250b7f059f24aba1e9bceefeaad238cb9040c',11,12,0,0,'{}');
INSERT INTO "devices" VALUES('hall-1','halls','e02fd84e707ff79f4a72f296abea9e8655510a81fbb5c6d39cefd86152aa04d1',13,NULL,0,0,'{}');
CREATE TABLE garbage (
	blob VARCHAR NOT NULL,
	PRIMARY KEY (blob)
);
CREATE TABLE groups (
	name VARCHAR NOT NULL,
	fingerprint VARCHAR NOT NULL,
	lineage INTEGER NOT NULL,
	bundle_blob VARCHAR NOT NULL,
	latest_version INTEGER NOT NULL,
	samples_seen BIGINT NOT NULL,
	ticks_done BIGINT NOT NULL,
	ticks_dropped BIGINT NOT NULL,
	checkpoint VARCHAR,
	dirty BOOLEAN NOT NULL,
	last_published_ms BIGINT NOT NULL,
	adaptation VARCHAR NOT NULL,
	worker VARCHAR,
	lease_until_ms BIGINT NOT NULL,
	served BIGINT NOT NULL,
	PRIMARY KEY (name)
);
INSERT INTO "groups" VALUES('doors','f1',1,'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',1,70,1,0,'dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd',0,40,'on',NULL,0,1);
INSERT INTO "groups" VALUES('halls','f2',1,'cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc',0,0,0,0,NULL,0,0,'off',NULL,0,0);
CREATE TABLE payloads (
	row_id INTEGER NOT NULL,
	image BLOB NOT NULL,
	PRIMARY KEY (row_id),
	FOREIGN KEY(row_id) REFERENCES samples (row_id)
);
INSERT INTO "payloads" VALUES(2,X'696D6167652032');
INSERT INTO "payloads" VALUES(3,X'696D6167652033');
INSERT INTO "payloads" VALUES(4,X'696D6167652034');
INSERT INTO "payloads" VALUES(5,X'696D6167652035');
CREATE TABLE samples (
	row_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
	group_name VARCHAR NOT NULL,
	sample_id BLOB NOT NULL,
	codec VARCHAR NOT NULL,
	state VARCHAR NOT NULL,
	version INTEGER,
	received_ms BIGINT NOT NULL,
	CONSTRAINT uq_samples_group_sample UNIQUE (group_name, sample_id),
	FOREIGN KEY(group_name) REFERENCES groups (name)
);
INSERT INTO "samples" VALUES(1,'doors',X'00000000000000000000000000000001','png','gone',1,20);
INSERT INTO "samples" VALUES(2,'doors',X'00000000000000000000000000000002','png','replay',1,20);
INSERT INTO "samples" VALUES(3,'doors',X'00000000000000000000000000000003','png','replay',1,20);
INSERT INTO "samples" VALUES(4,'doors',X'00000000000000000000000000000004','png','pending',NULL,20);
INSERT INTO "samples" VALUES(5,'doors',X'00000000000000000000000000000005','png','pending',NULL,20);
CREATE TABLE updates (
	group_name VARCHAR NOT NULL,
	version INTEGER NOT NULL,
	blob VARCHAR NOT NULL,
	signature VARCHAR NOT NULL,
	fingerprint VARCHAR NOT NULL,
	method VARCHAR NOT NULL,
	created_ms BIGINT NOT NULL,
	size_bytes BIGINT NOT NULL,
	rollback_of INTEGER,
	samples INTEGER NOT NULL,
	metrics JSON NOT NULL,
	PRIMARY KEY (group_name, version),
	FOREIGN KEY(group_name) REFERENCES groups (name)
);
INSERT INTO "updates" VALUES('doors',1,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee','signature','f1','bn',40,7,NULL,3,'{"loss": 0.5}');
CREATE INDEX ix_devices_group_name ON devices (group_name);
CREATE INDEX ix_samples_queue ON samples (group_name, state, row_id);
CREATE INDEX ix_samples_version ON samples (group_name, version);
CREATE INDEX ix_samples_age ON samples (state, received_ms);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('samples',5);
COMMIT;

