"""Which tests are attacks: one row each in the table that is printed at the end of every run that tried them."""

from __future__ import annotations

ATTACKS: dict[str, tuple[str, int]] = {
    "test_train_loop::test_killed_and_resumed_is_straight_bit_for_bit": ("kill -9 while training, resumed", 1),
    "test_train_loop::test_killed_a_hundred_times_is_straight": ("kill -9 while training, resumed", 100),
    "test_checkpoint_folder::test_killed_at_any_step_the_old_or_the_new_one_loads": ("ended before any rename", 20),
    "test_checkpoint_folder::test_killed_inside_saves_a_folder_is_whole": ("kill -9 inside a save", 10),
    "test_checkpoint_folder::test_killed_two_hundred_times_inside_saves_a_folder_is_whole": (
        "kill -9 inside a save",
        200,
    ),
    "test_checkpoint_folder::test_a_folder_without_its_manifest_is_unfinished": ("half-written folder", 1),
    "test_checkpoint_folder::test_malformed_weights_are_refused": ("malformed safetensors", 1),
    "test_checkpoint_folder::test_every_flipped_bit_is_found": ("bit flips in a checkpoint", 200),
    "test_text_chat::test_a_hostile_template_is_refused": ("hostile chat template", 1),
    "test_text_chat::test_text_adds_no_control_token_and_prompts_are_prefixes": ("control tokens in user text", 50),
    "test_text_tokenizer::test_a_hundred_thousand_texts_come_back": ("tokenizer round trips", 100_000),
    "test_serve_socket::test_streams_hold_whole_characters_only": ("streams of æøå and emoji", 30),
    "test_serve_socket::test_a_thousand_streams_hold_whole_characters_only": ("streams of æøå and emoji", 1000),
    "test_serve_socket::test_bombs_are_refused_at_once": ("n bombs and huge limits", 1),
    "test_serve_socket::test_large_bodies_are_refused_unread": ("bodies over the limit", 1),
    "test_serve_socket::test_slow_clients_are_closed": ("slow clients", 49),
    "test_serve_socket::test_headers_without_end_are_cut_off": ("headers without end", 1),
    "test_serve_socket::test_a_client_that_leaves_takes_its_work_along": ("clients gone in mid-stream", 20),
    "test_serve_socket::test_a_hundred_that_leave_leave_nothing": ("clients gone in mid-stream", 120),
    "test_serve_company::test_who_stays_is_answered_as_if_alone": ("clients that come and go in company", 64),
    "test_serve_company::test_five_hundred_come_and_go_and_leave_nothing": (
        "clients that come and go in company",
        1008,
    ),
    "test_serve_company::test_who_stays_in_the_studio_is_answered_as_if_alone": (
        "visitors that come and go in company",
        64,
    ),
    "test_serve_company::test_five_hundred_come_and_go_in_the_studio": ("visitors that come and go in company", 1008),
    "test_serve_company::test_a_failure_is_told_and_the_next_is_answered": ("engines that fail", 1),
    "test_serve_company::test_an_engine_beyond_help_is_reported": ("engines that fail", 1),
    "test_serve_stalls::test_a_template_without_end_keeps_nobody_waiting": ("what could keep others waiting", 44),
    "test_serve_stalls::test_a_long_text_keeps_nobody_waiting": ("what could keep others waiting", 1),
    "test_text_chat::test_a_template_cannot_make_much_of_little": ("hostile chat template", 1),
    "test_studio_app::test_any_form_may_be_sent_to_the_door": ("hostile forms at the door", 1),
    "test_serve_socket::test_websockets_are_shut_to_other_sites": ("rebound names and other sites", 1),
    "test_serve_guard::test_other_sites_and_rebound_names_are_shut_out": ("rebound names and other sites", 1),
    "test_serve_guard::test_too_many_at_once_are_sent_away_and_places_come_back": ("overload", 1),
    "test_serve_socket::test_paths_lead_nowhere": ("path traversal", 8),
    "test_serve_guard::test_keys": ("API keys", 1),
    "test_serve_fuzz::test_requests_from_the_published_description_get_described_answers": ("schemathesis", 60),
    "test_serve_fuzz::test_thousands_of_requests_from_the_published_description": ("schemathesis", 5000),
    "test_hostile_models::test_damaged_it_is_refused_or_works": ("damaged files of models", 52),
    "test_hostile_models::test_damaged_two_thousand_times": ("damaged files of models", 2000),
    "test_hostile_models::test_tokenizers_made_to_harm_are_refused": ("tokenizers made to harm", 1),
    "test_hostile_data::test_a_bomb_takes_little_memory_and_time": ("data bombs", 1),
    "test_hostile_data::test_damaged_data_is_refused_or_read": ("damaged data", 20),
    "test_hostile_data::test_damaged_data_five_hundred_times": ("damaged data", 500),
    "test_serve_fuzz::test_hostile_bodies_are_refused_in_openais_shape": ("hostile bodies", 75),
    "test_serve_fuzz::test_ten_thousand_hostile_bodies_leave_memory_flat": ("hostile bodies", 10_000),
    "test_preferences_store::test_kills_lose_nothing_that_was_acknowledged": ("kill -9 while ranking", 2),
    "test_preferences_store::test_a_hundred_kills_lose_nothing_that_was_acknowledged": ("kill -9 while ranking", 100),
    "test_preferences_store::test_a_full_disk_says_so_and_leaves_the_store_as_it_was": ("full disk", 1),
    "test_setup_durable::test_a_full_disk_leaves_what_was_there": ("full disk", 1),
    "test_model_step::test_a_damaged_library_is_compiled_anew_and_never_loaded": ("damaged compiled library", 15),
    "test_train_loop::test_a_flipped_bit_in_the_metrics_costs_a_row_and_not_the_training": ("damaged metrics.jsonl", 1),
    "test_setup_children::test_children_end_with_a_parent_that_is_killed": ("kill -9 of a parent", 1),
    "test_setup_children::test_work_of_the_studio_that_is_killed_takes_its_step_along": ("kill -9 of a parent", 1),
    "test_setup_durable::test_what_a_killed_process_had_begun_is_cleared_and_a_living_one_s_is_not": (
        "drafts of killed processes",
        2,
    ),
    "test_setup_durable::test_a_run_that_is_gone_on_with_has_no_copy_of_weights_left_by_a_kill": (
        "drafts of killed processes",
        3,
    ),
    "test_preferences_damage::test_a_flipped_bit_is_found_or_is_nowhere": ("bit flips in rankings.db", 26),
    "test_preferences_damage::test_two_thousand_flipped_bits_are_found_or_are_nowhere": (
        "bit flips in rankings.db",
        2000,
    ),
    "test_preferences_damage::test_a_changed_value_is_found_and_the_rest_is_whole": ("changed values in a store", 1),
    "test_runs_damage::test_a_damaged_run_is_refused_or_read_as_far_as_it_is_whole": ("damaged files of a run", 40),
    "test_runs_damage::test_two_thousand_damaged_runs_are_refused_or_read_as_far_as_they_are_whole": (
        "damaged files of a run",
        2000,
    ),
    "test_studio_browser::test_a_hostile_answer_is_only_text": ("hostile answer in a browser", 1),
}
"""``module::test`` → the row it counts in, and how many attacks one call of it (one set of parameters) is."""


def key_of(nodeid: str) -> str:
    """``tests/test_x.py::test_y[case]`` → ``test_x::test_y``."""
    file, _, name = nodeid.partition("::")
    return f"{file.rsplit('/', 1)[-1].removesuffix('.py')}::{name.split('[')[0]}"


def table(outcomes: list[tuple[str, int, bool]]) -> list[str]:
    """Lines of (row, tried, whether all were survived), summed by row in the order in which rows are first met."""
    rows: dict[str, list[int]] = {}
    for row, tried, survived in outcomes:
        counts = rows.setdefault(row, [0, 0])
        counts[0] += tried
        counts[1] += tried * survived
    lines = [f"{'attack':<44}{'tried':>10}{'survived':>10}"]
    return lines + [f"{row:<44}{tried:>10,}{survived:>10,}" for row, (tried, survived) in sorted(rows.items())]
