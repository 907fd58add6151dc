"""Checkpoints that are not what was written: refused, with the file named."""

import checks


def test_every_flipped_bit_is_refused(tmp_path, long):
    print(f"flipped bits: {checks.check_bit_flips(tmp_path, stride=1 if long else 101)}")


def test_every_truncation_and_every_appended_byte_is_refused(tmp_path, long):
    print(f"truncated or lengthened files: {checks.check_lengths(tmp_path, stride=1 if long else 53)}")


def test_missing_files_links_and_extra_files_are_refused(tmp_path):
    print(f"missing, linked or extra files: {checks.check_missing_and_extra(tmp_path)}")


def test_a_resume_falls_back_over_a_damaged_checkpoint(tmp_path):
    print(f"files damaged before a resume: {checks.check_fallback(tmp_path)}")
