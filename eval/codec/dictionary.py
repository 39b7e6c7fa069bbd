"""What headers of files usually say: the preset dictionary with which they are deflated, a part of the format version.

What is most common stands last, since a near match takes fewer bits.
"""

TYPICAL_HEADERS = "".join(
    (
        '"online.experts":["uniform","ngram","network"],"online.models":["128x4x2"],"online.calibrate":true,',
        '{"settings":{"model.width":64,"model.layers":3,"model.heads":1,',
        '"model.smear":3,"model.context":128,"train.finetune_epochs":0.15,"train.batch_sequences":4,',
        '"train.batch_schedule":[[0,128],[100000,512],[1000000,1024]],"optimizer.learning_rate":0.0045,',
        '"optimizer.embedding_factor":3.0,"optimizer.head_factor":2.0,"optimizer.vectors_factor":16.0,',
        '"optimizer.muon_learning_rate":0.0125,"optimizer.muon_momentum":0.9,"optimizer.warmup_tokens":2000,',
        '"optimizer.batch_exponent":0.25},"online.segment_steps":4',
        '{"model":{"architecture":"modern","width":128,"layers":4,"heads":2,"context":512,"smear":3},"tokenizer":"bytes",',
        '"raw_bytes":10,"sha256":"\x88","chunk_bytes":512,"lanes":16,"blocks":1,"predictor":"portable",',
        '"predictor_sha256":"\x84","environment":{}}"float",',
        '{"model":{"architecture":"lenet5","inputs":"1x8x8","model":{"architecture":"mlp","hidden":"32","subspace":600},',
        '"seed":0,"num_labels":4000,"sha256":"\x88","predictor_sha256":"\x84","environment":{',
        '{"settings":{"tokenizer.kind":"labels","model.architecture":"lenet5",',
        '"model.inputs":"1x8x8","model.hidden":"300x100","model.context":1,"train.finetune_epochs":0.0,',
        '"train.batch_sequences":32,"train.replays":6,"train.precision":"fp32","train.log_every_steps":50,',
        '"optimizer.kind":"adamw","optimizer.learning_rate":0.001,"optimizer.betas":[0.9,0.999],',
        '"optimizer.warmup_tokens":0,"optimizer.final_fraction":1.0,"online.ema":0.95},"num_tokens":60000,',
        '"sha256":"\x88","fingerprint":"","environment":{"precision":"float32","muon_precision":"float32",',
        '"device":"cpu","cpu_capability":"AVX2","threads":"1","code":"\x84",',
        '"torch":"2.13.0+cpu","numpy":"2.4.6","constriction":"0.5.0","libc":"glibc 2.36","world_size":"1",',
        '"limits":"none","commit":"\x84+"},"arithmetic":"\x84"}',
    )
).encode("latin-1")
