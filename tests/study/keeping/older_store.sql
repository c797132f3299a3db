-- a store as version 0.1.0 wrote it before label smoothing was an axis (schema 1): two cells of two epochs
BEGIN TRANSACTION;
CREATE TABLE attempts (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        cell INTEGER NOT NULL REFERENCES cells (id) ON DELETE CASCADE,
        environment TEXT REFERENCES environments (hash),
        host TEXT NOT NULL,
        pid INTEGER NOT NULL,
        started TEXT NOT NULL,
        ended TEXT,
        status TEXT,
        reason TEXT
    );
INSERT INTO "attempts" VALUES(1,1,'6321fc6192d3344a','vm',14788,'2026-11-27T04:04:47+00:00','2026-11-27T04:05:07+00:00','paused',NULL);
INSERT INTO "attempts" VALUES(2,2,'6321fc6192d3344a','vm',14788,'2026-11-27T04:05:07+00:00','2026-11-27T04:05:09+00:00','paused',NULL);
INSERT INTO "attempts" VALUES(3,1,'6321fc6192d3344a','vm',14788,'2026-11-27T04:05:09+00:00','2026-11-27T04:05:10+00:00','paused',NULL);
INSERT INTO "attempts" VALUES(4,2,'6321fc6192d3344a','vm',14788,'2026-11-27T04:05:10+00:00','2026-11-27T04:05:11+00:00','paused',NULL);
INSERT INTO "attempts" VALUES(5,1,'6321fc6192d3344a','vm',14788,'2026-11-27T04:05:11+00:00','2026-11-27T04:05:16+00:00','done',NULL);
INSERT INTO "attempts" VALUES(6,2,'6321fc6192d3344a','vm',14788,'2026-11-27T04:05:16+00:00','2026-11-27T04:05:26+00:00','done',NULL);
CREATE TABLE cells (
        id INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE,
        config TEXT NOT NULL,
        status TEXT NOT NULL DEFAULT 'pending',
        reason TEXT,
        traceback TEXT,
        outcome TEXT,
        attempts INTEGER NOT NULL DEFAULT 0
    );
INSERT INTO "cells" VALUES(1,'1960cf5044206a9cc3e5','{"norm": "none", "model": "resnet8:width=2", "seed": 0, "epochs": 2, "batch_size": 16, "optimizer": "sgd", "lr": 0.01, "schedule": "step:75%,95%", "momentum": 0.9, "weight_decay": 0.0001, "dropout": 0.0, "augment": "crop", "precision": "float32", "compiled": false}','done',NULL,NULL,'{"test": {"loss": 2.301447629928589, "accuracy": 0.1875, "micro_f1": 0.1875, "macro_f1": 0.03508771929824561}, "parameters": 1342, "backend": "numba_cpu", "peak_memory_bytes": 509341696, "environment": {"device": "cpu", "threads": 2}}',3);
INSERT INTO "cells" VALUES(2,'22e1ab13dcbfb48893cc','{"norm": "torch-bn", "model": "resnet8:width=2", "seed": 0, "epochs": 2, "batch_size": 16, "optimizer": "sgd", "lr": 0.01, "schedule": "step:75%,95%", "momentum": 0.9, "weight_decay": 0.0001, "dropout": 0.0, "augment": "crop", "precision": "float32", "compiled": false}','done',NULL,NULL,'{"test": {"loss": 2.3098292350769043, "accuracy": 0.25, "micro_f1": 0.25, "macro_f1": 0.11328976034858387}, "parameters": 1384, "backend": "numba_cpu", "peak_memory_bytes": 509407232, "environment": {"device": "cpu", "threads": 2}}',3);
CREATE TABLE environments (hash TEXT PRIMARY KEY, facts TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO "environments" VALUES('6321fc6192d3344a','{"cores": 2, "cpu": "AMD EPYC", "memory_bytes": 25276510208, "normlab": "0.1.0", "numba": "0.68.1", "numpy": "2.4.6", "platform": "Linux-6.18.44-fc-v657-x86_64-with-glibc2.36", "python": "3.11.7", "scikit-learn": "1.9.1", "scipy": "1.17.1", "torch": "2.13.0+cpu", "triton": "3.7.1"}');
CREATE TABLE epochs (
        cell INTEGER NOT NULL REFERENCES cells (id) ON DELETE CASCADE,
        epoch INTEGER NOT NULL,
        record TEXT NOT NULL,
        PRIMARY KEY (cell, epoch)
    ) WITHOUT ROWID;
INSERT INTO "epochs" VALUES(1,1,'{"epoch": 1, "train_loss": 2.314201593399048, "train_accuracy": 0.075, "train_micro_f1": 0.075, "train_macro_f1": 0.013953488372093023, "val_loss": 2.293687343597412, "val_accuracy": 0.125, "val_micro_f1": 0.125, "val_macro_f1": 0.027777777777777776, "learning_rate": 0.01, "seconds": 3.770004448000009, "images_per_second": 11.016234106991583, "features": {"stage 1": {"percentiles": [-0.96795, -0.240321, -0.0243615, 0.116094, 0.575461], "mean": -0.063023, "std": 0.283931, "dead": 0.0}, "stage 2": {"percentiles": [-2.61118, -1.1581, -0.501593, 0.125759, 1.30248], "mean": -0.523107, "std": 0.806651, "dead": 0.0}, "stage 3": {"percentiles": [-0.306315, -0.109767, -0.017212, 0.0888819, 0.281111], "mean": -0.0132914, "std": 0.128594, "dead": 0.0}, "features": {"percentiles": [0.0, 0.021344, 0.069042, 0.166849, 0.316812], "mean": 0.094244, "std": 0.0831713, "dead": 0.0}}, "gradients": {"stem.0": 0.0526063, "blocks.0.conv1": 0.0414756, "blocks.0.conv2": 0.022601, "blocks.1.conv1": 0.0642958, "blocks.1.conv2": 0.104745, "blocks.1.shortcut.conv": 0.0259393, "blocks.2.conv1": 0.062436, "blocks.2.conv2": 0.0508977, "blocks.2.shortcut.conv": 0.027023, "classifier": 0.0729327}}');
INSERT INTO "epochs" VALUES(1,2,'{"epoch": 2, "train_loss": 2.313336658477783, "train_accuracy": 0.075, "train_micro_f1": 0.075, "train_macro_f1": 0.013953488372093023, "val_loss": 2.292001724243164, "val_accuracy": 0.125, "val_micro_f1": 0.125, "val_macro_f1": 0.027777777777777776, "learning_rate": 0.01, "seconds": 3.8569130879998283, "images_per_second": 11.397704971576411, "features": {"stage 1": {"percentiles": [-0.969896, -0.240781, -0.0234506, 0.117668, 0.577144], "mean": -0.0622962, "std": 0.284666, "dead": 0.0}, "stage 2": {"percentiles": [-2.61322, -1.16881, -0.503898, 0.123455, 1.30425], "mean": -0.530844, "std": 0.807934, "dead": 0.0}, "stage 3": {"percentiles": [-0.302656, -0.111465, -0.0153167, 0.0869995, 0.276617], "mean": -0.0125515, "std": 0.127852, "dead": 0.0}, "features": {"percentiles": [0.0, 0.0211697, 0.0706175, 0.167332, 0.316043], "mean": 0.0945349, "std": 0.0828204, "dead": 0.0}}, "gradients": {"stem.0": 0.0572596, "blocks.0.conv1": 0.0487634, "blocks.0.conv2": 0.0267802, "blocks.1.conv1": 0.0991128, "blocks.1.conv2": 0.14654, "blocks.1.shortcut.conv": 0.0192607, "blocks.2.conv1": 0.0611245, "blocks.2.conv2": 0.0622844, "blocks.2.shortcut.conv": 0.0303814, "classifier": 0.0834678}}');
INSERT INTO "epochs" VALUES(2,1,'{"epoch": 1, "train_loss": 2.3457831382751464, "train_accuracy": 0.1, "train_micro_f1": 0.1, "train_macro_f1": 0.0607964925100475, "val_loss": 2.2877016067504883, "val_accuracy": 0.125, "val_micro_f1": 0.125, "val_macro_f1": 0.027777777777777776, "learning_rate": 0.01, "seconds": 1.116464821999898, "images_per_second": 49.610800479629525, "features": {"stage 1": {"percentiles": [-1.10127, -0.274145, -0.0316222, 0.12158, 0.636001], "mean": -0.079342, "std": 0.320409, "dead": 0.0}, "stage 2": {"percentiles": [-2.49925, -1.03425, -0.366121, 0.175165, 1.27013], "mean": -0.435494, "std": 0.777138, "dead": 0.0}, "stage 3": {"percentiles": [-0.403914, -0.150921, -0.0165282, 0.117157, 0.36505], "mean": -0.0187672, "std": 0.167011, "dead": 0.0}, "features": {"percentiles": [0.0, 0.0632437, 0.122133, 0.233098, 0.372059], "mean": 0.14424, "std": 0.0981013, "dead": 0.0}}, "gradients": {"stem.0": 0.646739, "blocks.0.conv1": 0.760393, "blocks.0.conv2": 0.36971, "blocks.1.conv1": 0.346965, "blocks.1.conv2": 0.354644, "blocks.1.shortcut.conv": 1.18788, "blocks.2.conv1": 0.395385, "blocks.2.conv2": 0.360805, "blocks.2.shortcut.conv": 0.160335, "classifier": 0.440701}}');
INSERT INTO "epochs" VALUES(2,2,'{"epoch": 2, "train_loss": 2.338988924026489, "train_accuracy": 0.125, "train_micro_f1": 0.125, "train_macro_f1": 0.07805555555555554, "val_loss": 2.2825512886047363, "val_accuracy": 0.125, "val_micro_f1": 0.125, "val_macro_f1": 0.029411764705882353, "learning_rate": 0.01, "seconds": 9.469198847999678, "images_per_second": 4.238512993560214, "features": {"stage 1": {"percentiles": [-1.26433, -0.314552, -0.0502259, 0.127128, 0.743537], "mean": -0.100656, "std": 0.35532, "dead": 0.0}, "stage 2": {"percentiles": [-2.61775, -0.950717, -0.308471, 0.220739, 1.28441], "mean": -0.383755, "std": 0.776738, "dead": 0.0}, "stage 3": {"percentiles": [-0.548273, -0.187737, -0.0294851, 0.139966, 0.451747], "mean": -0.0244207, "std": 0.208237, "dead": 0.0}, "features": {"percentiles": [0.000431337, 0.0915296, 0.168688, 0.27395, 0.51197], "mean": 0.191526, "std": 0.123586, "dead": 0.0}}, "gradients": {"stem.0": 0.559724, "blocks.0.conv1": 0.949475, "blocks.0.conv2": 0.527608, "blocks.1.conv1": 0.542716, "blocks.1.conv2": 0.412655, "blocks.1.shortcut.conv": 2.51698, "blocks.2.conv1": 0.572331, "blocks.2.conv2": 0.503795, "blocks.2.shortcut.conv": 0.151716, "classifier": 0.635764}}');
CREATE TABLE studies (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        started TEXT NOT NULL,
        spec TEXT NOT NULL,
        facts TEXT NOT NULL,
        cells TEXT NOT NULL
    );
INSERT INTO "studies" VALUES(1,'2026-11-27T04:04:47+00:00','{"data": "digits", "split_seed": 0, "image_size": null, "skip_bad": false, "limit_train": 40, "limit_eval": 16, "plugins": [], "norms": ["none", "torch-bn"], "models": ["resnet8:width=2"], "batch_sizes": [16], "optimizers": ["sgd"], "lrs": [0.01], "epochs": [2], "dropout": [0.0], "weight_decays": [0.0001], "augment": null, "seeds": [0], "schedule": "step:75%,95%", "momentum": 0.9, "precision": "float32", "compile": false, "tune": [], "trials": null}','{"command": "make.py", "data": "digits", "data_hash": "036155ad604f60a917f7825c00303a23", "class_names": ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"], "image_shape": [1, 8, 8], "train_images": 40, "val_images": 16, "test_images": 16, "notes": [], "baseline": null}','[1, 2]');
CREATE INDEX cells_by_status ON cells (status);
CREATE INDEX attempts_by_cell ON attempts (cell);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('studies',1);
INSERT INTO "sqlite_sequence" VALUES('attempts',6);
COMMIT;
PRAGMA user_version = 1;
