"""The file of notes: one for all dictionaries, safe from several threads and processes, never something else's file."""

import sqlite3
import threading

import pytest

from sae.errors import FormatError
from sae.inspection.server.notes import ListItem, Notes


@pytest.fixture
def notes(tmp_path):
    found = Notes.open(tmp_path / "deep" / "notes.sqlite")
    yield found
    found.close()


def test_what_is_said_is_there_when_the_file_is_opened_again(notes):
    made = notes.add_explanation("a", 3, "months", author="ada")
    notes.add_score(made.id, "detection", 0.5, {"n": 10})
    notes.set_note("a", 3, "first")
    notes.set_note("a", 3, "second")
    notes.set_list("mine", title="Mine", items=[ListItem("a", 3), ListItem("b", 4, "why")])
    again = Notes.open(notes.path)
    assert again.explanations("a", 3) == notes.explanations("a", 3) and again.explanations("a", 3)[0].scores[0].value == 0.5
    assert again.note("a", 3)[0] == "second" and again.lists() == notes.lists()
    assert again.explanations("b", 3) == () and again.labels("b") == {}
    again.close()


def test_the_label_is_the_newest_by_a_person_else_the_newest(notes):
    notes.add_explanation("a", 1, "program", method="lexical")
    notes.add_explanation("a", 1, "program again", method="lexical")
    assert notes.labels("a") == {1: "program again"} and notes.label("a", 1) == "program again"
    notes.add_explanation("a", 1, "person")
    notes.add_explanation("a", 1, "program third", method="lexical")
    assert notes.labels("a") == {1: "person"} and notes.label("a", 1) == "person" and notes.label("a", 2) is None


def test_scores_and_items_go_with_what_they_belong_to(notes):
    made = notes.add_explanation("a", 1, "x")
    notes.add_score(made.id, "detection", 0.5)
    notes.set_list("mine", title="x", items=[ListItem("a", 1)])
    assert notes.remove_explanation(made.id) and not notes.remove_explanation(made.id)
    assert notes.remove_list("mine") and not notes.remove_list("mine")
    for table in ("scores", "items"):
        assert notes.connection.execute(f"select count(*) from {table}").fetchone() == (0,)
    with pytest.raises(sqlite3.IntegrityError):
        notes.add_score(made.id, "detection", 0.5)
    with pytest.raises(FormatError, match="finite"):
        notes.add_score(made.id, "detection", float("nan"))


def test_search_takes_letters_as_they_are(notes):
    notes.add_explanation("a", 1, "100% of it")
    notes.add_explanation("a", 2, "1000 of it")
    notes.set_note("a", 3, "under_score \\ stroke")
    assert [hit[0] for hit in notes.search("a", "100%", limit=9)] == [1]
    assert [hit[:2] for hit in notes.search("a", "UNDER_S", limit=9)] == [(3, "note")]
    assert notes.search("a", "underXscore", limit=9) == [] and notes.search("a", "\\ s", limit=9)[0][0] == 3
    assert len(notes.search("a", "of it", limit=1)) == 1


def test_the_stamp_changes_with_every_change_here_and_elsewhere(notes):
    stamps = [notes.stamp()]
    made = notes.add_explanation("a", 1, "x")
    stamps.append(notes.stamp())
    other = Notes.open(notes.path)
    other.set_note("a", 1, "y")
    stamps.append(notes.stamp())
    notes.remove_explanation(made.id)
    stamps.append(notes.stamp())
    assert len(set(stamps)) == 4 and notes.stamp() == stamps[-1]
    other.close()


def test_threads_and_a_second_connection_lose_nothing(notes):
    other = Notes.open(notes.path)

    def write(file, number):
        for i in range(20):
            file.add_explanation("a", number, f"{number}.{i}")

    threads = [threading.Thread(target=write, args=(file, number)) for number, file in enumerate([notes, notes, other, other])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(notes.explanations("a", number)) for number in range(4)] == [20] * 4
    other.close()


def test_a_file_that_is_something_else_is_refused_and_left_as_it_is(tmp_path):
    text = tmp_path / "text"
    text.write_text("these are not notes, but they are long enough to be something")
    with pytest.raises(FormatError, match="cannot be used as a file of notes"):
        Notes.open(text)
    assert text.read_text().startswith("these")
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as connection:
        connection.execute("create table things (x)")
    connection.close()
    before = foreign.read_bytes()
    with pytest.raises(FormatError, match="no file of notes of version 1"):
        Notes.open(foreign)
    assert foreign.read_bytes() == before
    with pytest.raises(FormatError, match="cannot be used"):
        Notes.open(tmp_path)
