"""What was saved is what is loaded; what was damaged since is refused, with the file named."""

import checks


def test_every_flipped_bit_is_refused(tmp_path, long):
    print(f"flipped bits: {checks.check_bit_flips(tmp_path, stride=1 if long else 101)}")


def test_every_truncation_and_every_appended_byte_is_refused(tmp_path, long):
    print(f"truncated or lengthened files: {checks.check_lengths(tmp_path, stride=1 if long else 53)}")


def test_missing_files_and_wrong_links_are_refused_and_files_of_others_are_not(tmp_path):
    print(f"missing, linked or extra files: {checks.check_missing_and_extra(tmp_path)}")


def test_files_of_others_stay_in_a_step_folder(tmp_path):
    print(f"files of others: {checks.check_strays(tmp_path)}")


def test_a_damaged_checkpoint_prunes_no_other_one(tmp_path):
    print(f"checkpoints damaged before pruning: {checks.check_pruning_of_damaged(tmp_path)}")


def test_readers_fall_back_from_a_damaged_best_checkpoint(tmp_path):
    print(f"best checkpoints damaged: {checks.check_best_damaged(tmp_path)}")


def test_a_checkpoint_that_is_pruned_while_it_is_read_is_chosen_again(tmp_path, long):
    print(f"readers beside a run, line by line: {checks.check_readers(tmp_path, stride=1 if long else 31)}")


def test_a_resume_falls_back_from_a_damaged_checkpoint(tmp_path):
    print(f"files damaged before a resume: {checks.check_fallback(tmp_path)}")


def test_what_is_saved_is_loaded_to_the_bit(tmp_path):
    checks.check_round_trip(tmp_path)


def test_the_newest_and_the_best_checkpoint_are_kept(tmp_path):
    checks.check_pruning(tmp_path)


def test_a_run_folder_in_use_is_not_touched(tmp_path):
    checks.check_lock(tmp_path)


def test_a_run_notices_that_its_folder_is_gone(tmp_path):
    checks.check_moved_folder(tmp_path)


def test_torn_and_late_lines_are_dropped(tmp_path):
    checks.check_torn_lines(tmp_path)


def test_another_program_computes_the_same_from_the_files(tmp_path):
    checks.check_transformers(tmp_path)
