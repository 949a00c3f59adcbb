from ltlearn.training.records import TrajectoryRecord, describe_selection


def correction(value: float | None, chosen_on: str) -> dict:
    return {"stage": "post hoc", "method": "tau_norm", "value": value, "chosen_on": chosen_on}


def test_a_selection_names_the_epoch_and_the_strength():
    trained = TrajectoryRecord(epoch=[0, 1, 2], chosen=2)
    stages = [{"stage": "stage 2"}, correction(0.7, "validation")]
    assert describe_selection([], None) == "stage 1"
    assert describe_selection(stages[:1], trained) == "epoch 2 on validation"
    assert (
        describe_selection(stages, trained) == "epoch 2 on validation, tau_norm 0.7 on validation"
    )


def test_a_correction_has_a_strength_and_no_epoch():
    assert describe_selection([correction(1.3, "test")], None) == "tau_norm 1.3 selected on test"
    assert describe_selection([correction(1.0, "not chosen")], None) == "tau_norm 1 not chosen"
    assert describe_selection([correction(None, "not chosen")], None) == "nothing to choose"
