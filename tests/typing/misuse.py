"""Three mistakes that the type checker reports; each line with one ends in its code."""

from ltlearn import LTDataLoaders, lt_learner, shot_report

dls = LTDataLoaders.from_folder("photos")
learn = lt_learner(dls, "resnet50")
learn.fit_stage1("90")  # arg-type
learn.retrain_classifier(5, methods="crt")  # call-arg
report = shot_report([0, 1], [0, 0], [500, 5])
better = report.few + 0.1  # operator
